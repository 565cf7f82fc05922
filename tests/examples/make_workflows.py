"""``python tests/examples/make_workflows.py [NAME ...]`` rebuilds the example workflows.

The real front end of the host that the tests use builds and writes them, so that a node's changed
default or input reaches every workflow. Without names, all of them.
"""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from machine.environment import REPOSITORY, prepared  # noqa: E402


def make(names: list[str]) -> None:
    """Write the workflows of these names; needs the host's Python and a Chromium."""
    from machine.host_process import serve
    from talk.editor import find_chromium, open_editor

    from examples.prompts import FOLDER
    from examples.workflows import WORKFLOWS

    comfyui = Path(os.environ["COMFYUI_PATH"])
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium or Chrome on this machine")
    with serve(comfyui) as server:
        with open_editor(chromium, server.url) as editor:
            for name in names or WORKFLOWS:
                workflow = editor.build(WORKFLOWS[name]().description(name))
                file = FOLDER / f"{name}.json"
                file.write_text(workflow + "\n", "utf-8")
                print(file.relative_to(REPOSITORY), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--in-host"]:
        make(arguments[1:])
    else:
        sys.exit(prepared().run(__file__, "--in-host", *arguments))
