"""``python tests/run.py [PYTEST ARGUMENTS]``: sets up what is missing, then runs every check."""

import sys

from machine.environment import MADE, REPOSITORY, prepared
from machine.host_process import link_folder


def link_for_typechecker() -> None:
    """Give the pack a name that a Python package can have, where pyproject.toml sends mypy.

    Its modules import each other relatively, across a root folder whose own name has a hyphen.
    """
    link = MADE / "typecheck" / "comfyui_imagic"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link_folder(link, REPOSITORY)


def main(pytest_arguments: list[str]) -> int:
    """Run ruff, mypy and pytest; return 0 if all three passed."""
    host = prepared()
    link_for_typechecker()
    checks = {
        "ruff": ("ruff", "check", REPOSITORY),
        "mypy": ("mypy",),
        "pytest": ("pytest", *pytest_arguments),
    }
    failed = []
    for name, command in checks.items():
        print(f"\n== {name}", flush=True)
        if host.run(*command):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
