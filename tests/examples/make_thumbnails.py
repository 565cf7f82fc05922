"""``python tests/examples/make_thumbnails.py [NAME ...]`` makes the examples' pictures anew.

Without names, all of them: a quarter of an hour on one processor core.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from machine.environment import prepared  # noqa: E402

if __name__ == "__main__":
    sys.exit(prepared().run(TESTS / "examples" / "thumbnails.py", *sys.argv[1:]))
