"""A run of jobs in a test: what is edited, where it goes, and by which workers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler, SpecCluster, Worker

from tedbench.benchmark import Task
from tedbench.cluster import Comfy, as_worker
from tedbench.jobs import Run
from tedbench.pictures import RUN, make_benchmark
from tedbench.protocol import METHODS, Protocol
from tedbench.stand_in import StandIn
from tedbench.store import Store


@contextlib.contextmanager
def workers(*servers: StandIn) -> Iterator[Client]:
    """A cluster of threads in this process, a worker for each server."""
    here = {"host": "127.0.0.1", "dashboard": False}
    specified: dict[int, dict[str, Any]] = {
        i: {"cls": Worker, "options": as_worker(Comfy(server.url)) | here}
        for i, server in enumerate(servers)
    }
    scheduler = {"cls": Scheduler, "options": here}
    with SpecCluster(specified, scheduler) as cluster, Client(cluster) as client:
        yield client


class Counting(Store):
    """A folder that counts how often each result came."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.came: Counter[tuple[str, str]] = Counter()

    def keep(self, edit: Task, method: str, *args: Any, **about: Any) -> None:
        """Count, and keep."""
        self.came[edit.name, method] += 1
        super().keep(edit, method, *args, **about)


class Trial:
    """A folder of edits, and where they go."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.edits = make_benchmark(folder / "tedbench", count)
        self.store = Counting(folder / "out")
        self.said: list[str] = []

    def run(self, *servers: StandIn, **how: Any) -> None:
        """Run it by workers in this process; ``how`` as in ``run_on``."""
        with workers(*servers) as client:
            self.run_on(client, **how)

    def run_on(
        self,
        client: Client,
        methods: Sequence[str] = METHODS,
        edits: Sequence[Task] | None = None,
        protocol: Protocol = RUN,
    ) -> None:
        """Run it by the workers of a cluster."""
        chosen = self.edits if edits is None else edits
        Run(client, self.store, protocol, methods, self.said.append)(chosen)

    def done(self) -> set[tuple[str, str]]:
        """Edit and method of all that the folder says is done."""
        return {
            (edit.name, method) for edit in self.edits for method in METHODS
            if self.store.is_done(edit.name, method, RUN.settings(method))
        }  # fmt: skip
