"""``boot.py PACKAGES COMMAND ARGUMENTS...`` runs a module or script in the host's own Python.

The tests' packages come last on the path, so that each of the host's own wins. PYTHONPATH cannot
do this: it puts them first, and the portable ComfyUI's Python ignores it.
"""

import runpy
import sys
from pathlib import Path

packages, command, *arguments = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(packages)
sys.argv = [command, *arguments]
if command.endswith(".py"):
    runpy.run_path(command, run_name="__main__")
else:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
