"""``host_main.py COMFYUI ARGUMENTS...`` runs ComfyUI's main.py and ends with whoever started it.

The starter holds the other end of standard input; the system closes it however the starter ended,
a kill that leaves no time to clean up included.
"""

import os
import runpy
import sys
import threading


def end_with_starter() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


threading.Thread(target=end_with_starter, daemon=True).start()
comfyui, *arguments = sys.argv[1:]
main = os.path.join(comfyui, "main.py")
sys.argv = [main, *arguments]
# The place of this file's own folder, which no one who starts ComfyUI has on the path.
sys.path[0] = comfyui
runpy.run_path(main, run_name="__main__")
