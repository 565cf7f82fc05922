"""A custom node for tests: the server that has it loads the checkpoints of ``families.kinds``.

It has no nodes. Loaded as any pack is, it shrinks the constants of the host's that stand for large
models (see ``kinds.small_constants``), for as long as the server runs.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

# Last, so that none of the tests' modules can take the place of one of the host's.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from families.kinds import small_constants  # noqa: E402

SMALL = ExitStack()  # kept, for a context that nobody holds ends at once
SMALL.enter_context(small_constants(narrow=True))
NODE_CLASS_MAPPINGS: dict[str, type] = {}
