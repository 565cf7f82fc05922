"""Edits as jobs of a cluster: what a worker does, and how its results come into the folder."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from distributed import Client, Future, KilledWorker, Worker, as_completed, get_worker
from distributed.scheduler import NoValidWorkerError, NoWorkerError
from PIL import Image, ImageOps, UnidentifiedImageError
from talk.api import PromptRejected

from tedbench.benchmark import Task
from tedbench.cluster import EDIT, comfy_of, editors
from tedbench.prompts import SEEN, Photograph, method_prompt, picture_node
from tedbench.protocol import Protocol
from tedbench.servers import JobFailed, Nodes, Server, ServerLost, Unusable, check
from tedbench.store import Store, is_blank

# Methods of one job: the first two share stage A, which the server then trains once.
TOGETHER = (("imagic", "imagic_without_b"), ("sdedit",), ("ddib",))


@dataclass(frozen=True)
class Job:
    """What one worker does at a time: a ``photograph`` (encoded) by ``methods``."""

    protocol: Protocol
    photograph: bytes
    name: str
    text: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a method: ``pictures`` by setting, and ``seen``, encoded; or an ``error``."""

    method: str
    server: str
    seconds: float | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    seen: bytes = b""
    error: str = ""


# ---- on a worker ----------------------------------------------------------------------------


def nodes(dask_worker: Worker) -> Nodes:
    """What a worker's server says of its nodes."""
    return comfy_of(dask_worker).nodes


def ready(protocol: Protocol, dask_worker: Worker) -> None:
    """Make sure that a worker can run the protocol.

    Raises:
        Unusable: it cannot.
    """
    comfy = comfy_of(dask_worker)
    check(comfy.server.url, comfy.nodes, protocol)


def do(job: Job) -> list[Outcome]:
    """Do a job on this worker's server.

    Raises:
        Unusable: a worker that came later and cannot run the protocol.
        SystemExit: the server is gone. A worker without one is none: the engine starts it anew
            and gives the job to another.
    """
    ready(job.protocol, get_worker())
    comfy = comfy_of(get_worker())
    comfy.stop.clear()
    try:
        return [_method(comfy.server, job, method) for method in job.methods]
    except ServerLost as error:
        raise SystemExit(str(error)) from None


def _method(server: Server, job: Job, method: str) -> Outcome:
    try:
        with Image.open(io.BytesIO(job.photograph)) as opened:
            shape = job.protocol.shape(*ImageOps.exif_transpose(opened).size)
        photograph = Photograph(server.lend(job.photograph, job.name), *shape)
        outputs, seconds = server.run(method_prompt(job.protocol, method, photograph, job.text))
        pictures = {
            setting: server.fetch(outputs[picture_node(index)])
            for index, setting in enumerate(job.protocol.settings(method))
        }
        blank = [setting or method for setting, p in pictures.items() if is_blank(p)]
        if blank:
            raise JobFailed(f"the picture has one colour only: {', '.join(blank)}")
        return Outcome(method, server.url, seconds, pictures, server.fetch(outputs[SEEN]))
    except PromptRejected as error:
        return Outcome(method, server.url, error=f"the server refused it: {error}")
    except (JobFailed, UnidentifiedImageError) as error:
        return Outcome(method, server.url, error=str(error))


# ---- in the run -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """All edits by the workers of a cluster, into a folder.

    Attributes:
        client: of the cluster.
        store: where results go.
        protocol: of the run.
        methods: which to do.
        say: told a line about everything that happens.
    """

    client: Client
    store: Store
    protocol: Protocol
    methods: Sequence[str]
    say: Callable[[str], None] = print

    def __call__(self, edits: Sequence[Task]) -> None:
        """Return when all that the folder lacks is done, or has failed.

        Raises:
            Unusable: no worker is left.
        """
        waiting = deque(work for edit in edits for work in self._missing(edit))
        left = sum(len(methods) for _, methods in waiting)
        self.say(f"{left} methods to run on {len({edit.name for edit, _ in waiting})} edits")
        under_way: dict[Future, tuple[Task, tuple[str, ...]]] = {}
        coming = as_completed()
        while waiting or under_way:
            # As many as there are workers, which may come and go: then a job that ends its worker
            # is blamed for that alone, and no photograph lies in memory before its turn.
            while waiting and len(under_way) < max(1, len(editors(self.client))):
                edit, methods = waiting.popleft()
                future = self._submit(edit, methods)
                under_way[future] = edit, methods
                coming.add(future)
            future = next(coming)
            edit, methods = under_way.pop(future)
            for outcome in _outcomes(future, methods):
                left -= 1
                self.say(f"[{left} to go] {edit.name}: {self._keep(edit, outcome)}")
            # Else the engine would do it again if its worker were lost.
            future.release()

    def _missing(self, edit: Task) -> Iterator[tuple[Task, tuple[str, ...]]]:
        for together in TOGETHER:
            methods = tuple(
                method for method in together if method in self.methods
                and not self.store.is_done(edit.name, method, self.protocol.settings(method))
            )  # fmt: skip
            if methods:
                yield edit, methods

    def _submit(self, edit: Task, methods: tuple[str, ...]) -> Future:
        name = f"photograph{edit.picture.suffix}"
        job = Job(self.protocol, edit.picture.read_bytes(), name, edit.text, methods)
        return self.client.submit(do, job, resources=EDIT, pure=False)

    def _keep(self, edit: Task, outcome: Outcome) -> str:
        method, server, seconds = outcome.method, outcome.server, outcome.seconds
        if outcome.error:
            self.store.fail(edit, method, outcome.error, server=server)
            return f"{method} FAILED on {server}: {outcome.error}"
        pictures, seen = outcome.pictures, outcome.seen
        self.store.keep(edit, method, pictures, seen, server=server, seconds=seconds)
        return method + ("" if seconds is None else f" in {seconds:.0f} s") + f" on {server}"


def _outcomes(future: Future, methods: tuple[str, ...]) -> list[Outcome]:
    try:
        return list(future.result())
    except KilledWorker as error:
        told, where = f"it ended {error.allowed_failures + 1} workers", error.last_worker.address
    except Unusable as error:
        told, where = str(error), "a worker"
    except (NoWorkerError, NoValidWorkerError):
        raise Unusable("no worker is left that takes edits") from None
    return [Outcome(method, where, error=told) for method in methods]
