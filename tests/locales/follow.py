"""``python tests/locales/follow.py LANGUAGE [NAME ...]``, after translating what has changed.

Notes that the language follows the English of today: of the texts whose names begin as given, such
as ``ImagicEtaSweep.inputs.start`` or ``docs.ImagicEtaSweep``; without names, of all.
"""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from machine.environment import prepared  # noqa: E402


def follow(language: str, *beginnings: str) -> None:
    """Ask a server of the host for the English texts; in the host's Python."""
    from machine.host_process import serve
    from talk.client import Client

    from locales import texts

    comfyui = Path(os.environ["COMFYUI_PATH"])
    with serve(comfyui) as server, Client(server.url) as client:
        originals = texts.english(client.get("/object_info"))
    for one in texts.LANGUAGES if language == "all" else [language]:
        texts.note(one, list(beginnings), originals)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-host"]:
        follow(*sys.argv[2:])
    elif len(sys.argv) > 1:
        sys.exit(prepared().run(__file__, "--in-host", *sys.argv[1:]))
    else:
        raise SystemExit(__doc__)
