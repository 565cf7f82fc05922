"""Sets up what is missing, then runs every check; see ``--help``."""

from __future__ import annotations

import argparse
import os
import sys

from machine.environment import MADE, REPOSITORY, prepared
from machine.host_process import link_folder

WORKERS = 2
CHECKS = {
    "ruff": (("ruff", "check"), ("ruff", "format", "--check")),
    "mypy": (("mypy",),),
    "pytest": (("pytest",),),
}
# A worker loads ComfyUI and starts servers once, so it takes whole files.
IN_PARALLEL = ("--numprocesses", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: our own options, and what is for pytest."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [-h] [--only CHECK] [PYTEST ARGUMENTS]",
        description="Sets up what is missing, then runs ruff (rules and formatting), mypy and "
        "pytest in a real ComfyUI's Python. Arguments that are not listed here go to pytest, for "
        "instance: tests/core -k seed -x. Without any, pytest runs all tests in "
        f"{WORKERS} processes; with some, in one.",
        allow_abbrev=False,
    )
    parser.add_argument("--only", choices=CHECKS, help="run this check alone")
    given, rest = parser.parse_known_args()
    if rest and given.only not in (None, "pytest"):
        parser.error(f"{' '.join(rest)} would go to pytest, which --only {given.only} leaves out")
    return given, rest


def link_for_typechecker() -> None:
    """Give the pack a name that a Python package can have, where pyproject.toml sends mypy.

    Its modules import each other relatively, across a root folder whose own name has a hyphen.
    """
    link = MADE / "typecheck" / "comfyui_imagic"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link_folder(link, REPOSITORY)


def main() -> int:
    """Run the checks; return 0 if all passed."""
    given, for_pytest = arguments()
    host = prepared()
    link_for_typechecker()
    if not for_pytest:
        for_pytest = list(IN_PARALLEL)
        # What PyTorch takes by itself is all cores, in each process.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
    failed = []
    for name in [given.only] if given.only else CHECKS:
        print(f"\n== {name}", flush=True)
        extra = for_pytest if name == "pytest" else []
        if any([host.run(*command, *extra) for command in CHECKS[name]]):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
