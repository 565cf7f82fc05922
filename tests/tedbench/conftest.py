"""Fixtures of the runner's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tedbench import protocol
from tedbench.pictures import RUN, keep_all, make_benchmark
from tedbench.servers import Server
from tedbench.stand_in import StandIn
from tedbench.store import Store
from tedbench.trial import Trial


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    """A finished run of two edits."""
    edits = make_benchmark(tmp_path / "tedbench")
    protocol.begin(tmp_path / "out", RUN)
    keep_all(made := Store(tmp_path / "out"), edits)
    return made


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    """Starts stand-ins, and ends them after the test."""
    monkeypatch.setattr(Server, "pause", 0.01)
    started: list[StandIn] = []

    def begin(*args: Any, **kwargs: Any) -> StandIn:
        started.append(StandIn(*args, **kwargs))
        return started[-1]

    yield begin
    for one in started:
        if not one.ended.is_set():
            one.end()


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """Two edits that nobody has done."""
    return Trial(tmp_path)
