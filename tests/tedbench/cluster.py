"""Who edits: Dask workers on this machine or others, each with a ComfyUI of its own or beside it.

Which worker does what, and again when a worker was lost, is the engine's to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin
from machine.host_process import ServerError, serve

from tedbench.servers import Server, Unusable

# What a job takes and a worker has one of: no GPU edits two photographs at once.
EDIT = {"edit": 1}
DASHBOARD = "127.0.0.1:8787"
SETTINGS = {
    # A worker comes back with a new ComfyUI, which takes its time to start.
    "distributed.deploy.lost-worker-timeout": "10 minutes",
    "distributed.scheduler.no-workers-timeout": "10 minutes",
}


@dataclass
class Comfy(WorkerPlugin):
    """A worker's ComfyUI, for as long as the worker lives.

    Args:
        url: one that runs beside it; None starts one of its own, with this pack.
        models: the models folder of its own; None for that of the ComfyUI on this machine.
        options: of its own on ComfyUI's command line.
    """

    url: str | None = None
    models: Path | None = None
    options: tuple[str, ...] = ()
    name = "comfy"

    def setup(self, worker: object) -> None:
        """Start it, or make sure that it answers."""
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches all processes of a terminal; whoever started this one ends it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.stop = threading.Event()
        self.running = contextlib.ExitStack()
        self.server = Server(self.url or self._start(), self.stop)
        self.nodes = self.server.describe()

    def _start(self) -> str:
        comfyui = Path(os.environ["COMFYUI_PATH"])
        models = self.models or comfyui / "models"
        own = serve(comfyui, models=models, cpu=False, options=self.options)
        return self.running.enter_context(own).url

    def transition(self, key: object, start: str, finish: str, **_: Any) -> None:
        """A job whose result nobody wants any more is not done to its end."""
        if (start, finish) == ("executing", "released"):
            self.stop.set()

    def teardown(self, worker: object) -> None:
        """End what it started."""
        self.stop.set()
        self.running.close()


def comfy_of(worker: Worker) -> Comfy:
    """The ComfyUI of a worker that takes edits."""
    plugin = worker.plugins[Comfy.name]
    assert isinstance(plugin, Comfy)
    return plugin


def comfies(urls: Sequence[str], models: Path | None) -> list[Comfy]:
    """One for each server that runs; where none is named, one of its own for each GPU."""
    # Takes seconds to load, of which reports have no use.
    from machine.accelerators import accelerators

    if urls:
        return [Comfy(url) for url in dict.fromkeys(urls)]
    count = accelerators()
    if count > 1:
        return [Comfy(None, models, ("--cuda-device", str(i))) for i in range(count)]
    return [Comfy(None, models, () if count else ("--cpu",))]


def as_worker(comfy: Comfy) -> dict[str, Any]:
    """The options of a Dask worker, or of the nanny of one, that has a ComfyUI."""
    return {"nthreads": 1, "memory_limit": 0, "resources": EDIT, "plugins": (comfy,)}


@contextlib.contextmanager
def local(workers: Sequence[Comfy]) -> Iterator[Client]:
    """A cluster of processes on this machine that ends with the context.

    Raises:
        Unusable: a worker's ComfyUI does not start, or does not answer.
    """
    here = {"host": "127.0.0.1"}
    quiet = {"silence_logs": logging.ERROR}
    specified: dict[int, dict[str, Any]] = {
        i: {"cls": Nanny, "options": as_worker(comfy) | here | quiet}
        for i, comfy in enumerate(workers)
    }
    scheduler = {"cls": Scheduler, "options": {**here, "dashboard_address": DASHBOARD}}
    with dask.config.set(SETTINGS), contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(SpecCluster(specified, scheduler, **quiet))
        except (RuntimeError, ServerError) as error:
            raise Unusable(_first(error)) from None
        yield stack.enter_context(Client(cluster))


def _first(error: BaseException) -> str:
    while error.__cause__:
        error = error.__cause__
    return str(error)


@contextlib.contextmanager
def at(address: str) -> Iterator[Client]:
    """The cluster of a running scheduler, when it has a worker that takes edits.

    Raises:
        Unusable: it does not answer.
    """
    try:
        client = Client(address)
    except OSError as error:
        raise Unusable(f"no scheduler answers at {address}: {error}") from None
    with client:
        print("waiting for a worker ...", flush=True)
        while not editors(client):
            time.sleep(0.5)
        yield client


def editors(client: Client) -> list[str]:
    """The addresses of the workers that take edits."""
    known = client.scheduler_info()["workers"]
    return [address for address, about in known.items() if set(EDIT) <= set(about["resources"])]


async def join(address: str, workers: Sequence[Comfy]) -> None:
    """Work for the scheduler at ``address`` until it or the user ends that.

    Raises:
        Unusable: it does not answer, or a worker's ComfyUI does not start or answer.
    """
    nannies = [Nanny(address, **as_worker(comfy)) for comfy in workers]
    async with contextlib.AsyncExitStack() as stack:
        try:
            await asyncio.gather(*map(stack.enter_async_context, nannies))
        except (RuntimeError, ServerError, OSError) as error:
            raise Unusable(f"no work for {address}: {_first(error)}") from None
        await asyncio.gather(*(nanny.finished() for nanny in nannies))
