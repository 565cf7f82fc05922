"""``boot.py PACKAGES COMMAND ARGUMENTS...`` runs a module or script in the host's own Python.

The tests' packages come last on the path, so that each of the host's own wins. PYTHONPATH cannot
do this: it puts them first, and the portable ComfyUI's Python ignores it.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path


def end_with_starter(starter: int) -> None:
    """Follow the starter into its end, so that a killed ``run.py`` leaves nothing running."""
    while os.getppid() == starter:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(*_: object) -> None:
    """As Ctrl-C, which cleans up, but also where that is ignored, as in a shell's background job.

    Once: who is told together with its starter is told again by it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, interrupt)
if os.name != "nt":  # Windows gives no new parent to a process whose own has ended.
    threading.Thread(target=end_with_starter, args=[os.getppid()], daemon=True).start()
packages, command, *arguments = sys.argv[1:]
sys.path[0] = str(Path(__file__).parent.parent)
sys.path.append(packages)
sys.argv = [command, *arguments]
if command.endswith(".py"):
    runpy.run_path(command, run_name="__main__")
else:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
