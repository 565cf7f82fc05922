"""Errors that users see begin with the node; its name is put there once, around ``execute``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BadInputError(ValueError):
    """Something that is wired or set cannot be used; says what was found and what to connect."""


class OutOfMemoryError(RuntimeError):
    """The memory does not suffice even in the cheapest way; says what to change."""


@contextmanager
def named(node: str) -> Iterator[None]:
    """Let the errors above, and that of a loss which is no number, begin with the name of the node.

    Also a decorator.
    """
    try:
        yield
    except (BadInputError, OutOfMemoryError, FloatingPointError) as error:
        error.args = (f"{node}: {error}",)
        raise
