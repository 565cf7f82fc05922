"""A custom node for tests: the server that has it loads the checkpoints of ``tiny.build_narrow``.

It has no nodes, and leaves all other checkpoints as they are.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

# Last, so that none of the tests' modules can take the place of one of the host's.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from families.kinds import narrow_unets  # noqa: E402

NARROW = ExitStack()  # kept, for a context that nobody holds ends at once
NARROW.enter_context(narrow_unets())
NODE_CLASS_MAPPINGS: dict[str, type] = {}
