"""``python tests/examples/make_help_pictures.py [NODE ...]`` makes the help pages' pictures anew.

Without names, all of them: about ten minutes on one processor core.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from machine.environment import prepared  # noqa: E402

if __name__ == "__main__":
    sys.exit(prepared().run(TESTS / "examples" / "help_pictures.py", *sys.argv[1:]))
