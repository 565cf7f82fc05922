"""An edit in a real server, cancelled, failed and killed. The long form is a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import faults
from talk.client import Event

STEPS = 24


@pytest.fixture(scope="module")
def ground(
    comfyui_folder: Path, narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[faults.Ground]:
    """A server with a user folder that outlives it."""
    user = tmp_path_factory.mktemp("user")
    with faults.Ground(comfyui_folder, narrow_checkpoint, user) as running:
        yield running


class Heard:
    """The steps of both trainings that a front end is told of."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {"a": [], "b": []}

    def __call__(self, event: Event) -> None:
        if event.type == "progress" and event.data["node"] in self.steps:
            self.steps[event.data["node"]].append(event.data["value"])


@pytest.mark.parametrize(
    ("fault", "training"), [("cancelled", "a"), ("raised", "b"), ("out of memory", "b")]
)
def test_what_a_fault_has_broken_off_goes_on(
    ground: faults.Ground, fault: str, training: str
) -> None:
    seed = faults.KINDS.index(fault)
    expected = ground.run(seed, STEPS, keep=False)
    assert ground.struck(seed, STEPS, fault, training, 6)
    assert ground.kept()
    heard, again = Heard(), Heard()
    assert faults.same(ground.run(seed, STEPS, keep=True, on_event=heard), expected, exact=True)
    # The host tells of some steps only, at a time.
    assert min(heard.steps[training]) > 6
    assert training == "a" or heard.steps["a"] == [], "the first training was done"
    assert faults.same(ground.run(seed, STEPS, keep=True, on_event=again), expected, exact=True)
    assert again.steps == {"a": [], "b": []}
    assert not ground.kept()


def test_another_server_goes_on_where_one_was_killed(ground: faults.Ground) -> None:
    expected = ground.run(99, STEPS, keep=False)
    first = ground.server.process.pid
    assert ground.struck(99, STEPS, "killed", "a", STEPS - 4)
    assert ground.server.process.pid != first and ground.kept()
    heard = Heard()
    found = ground.run(99, STEPS, keep=True, on_event=heard)
    assert min(heard.steps["a"]) > 2
    assert faults.same(found, expected, exact=False)


def test_a_training_that_learned_otherwise_is_told(ground: faults.Ground) -> None:
    found, other = (ground.run(seed, 2, keep=False) for seed in (1, 2))
    assert not faults.same(found, other, exact=True)
    assert not faults.same(found, other, exact=False)
