"""``python tests/examples/make_workflows.py [NAME ...]`` rebuilds examples and blueprints.

The real front end of the host that the tests use builds and writes them, so that a node's changed
default or input reaches every workflow. Without names, all of them.
"""

import os
import re
import sys
import uuid
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from machine.environment import REPOSITORY, prepared  # noqa: E402

from examples.canvas import NAMESPACE  # noqa: E402

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def make(names: list[str]) -> None:
    """Write the workflows of these names; needs the host's Python and a Chromium."""
    from machine.host_process import serve
    from talk.editor import find_chromium, open_editor

    from examples.prompts import BLUEPRINT_FOLDER, file_of
    from examples.workflows import BLUEPRINTS, WORKFLOWS

    comfyui = Path(os.environ["COMFYUI_PATH"])
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium or Chrome on this machine")
    with serve(comfyui) as server:
        with open_editor(chromium, server.url) as editor:
            for name in names or [*WORKFLOWS, *BLUEPRINTS]:
                described = {**WORKFLOWS, **BLUEPRINTS}[name]().description(name)
                if name in BLUEPRINTS:
                    file = BLUEPRINT_FOLDER / f"{name}.json"
                    file.parent.mkdir(exist_ok=True)
                else:
                    file = file_of(name)
                file.write_text(with_own_ids(editor.build(described), name) + "\n", "utf-8")
                print(file.relative_to(REPOSITORY), flush=True)


def with_own_ids(workflow: str, name: str) -> str:
    """The workflow with ids that are the same each time in place of the front end's random ones."""
    found = dict.fromkeys(UUID.findall(workflow))
    ids = {old: str(uuid.uuid5(NAMESPACE, f"{name} {n}")) for n, old in enumerate(found)}
    return UUID.sub(lambda match: ids[match[0]], workflow)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--in-host"]:
        make(arguments[1:])
    else:
        sys.exit(prepared().run(__file__, "--in-host", *arguments))
