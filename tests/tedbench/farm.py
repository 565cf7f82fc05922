"""All edits over all servers: each server takes an edit, and one that is lost gives it back."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from talk.api import PromptRejected

from tedbench import scores
from tedbench.benchmark import Task
from tedbench.prompts import SEEN, method_prompt, picture_node
from tedbench.protocol import Protocol
from tedbench.servers import JobFailed, ServerLost, Stopped, Worker
from tedbench.store import Store, is_blank

# One runs and one waits in the server's own queue, so that it never idles.
AHEAD = 2
# An edit that was under way when as many servers went away is not given to another.
MOST_LOSSES = 2


class Farm:
    """One run.

    Args:
        store: where results go.
        protocol: of the run.
        edits: which to do.
        methods: which to do, in this order.
        say: told a line about everything that happens.
    """

    def __init__(
        self,
        store: Store,
        protocol: Protocol,
        edits: Sequence[Task],
        methods: Sequence[str],
        say: Callable[[str], None] = print,
    ) -> None:
        self.store = store
        self.protocol = protocol
        self.methods = methods
        self.lost: list[str] = []
        self._say = say
        self._waiting = deque(edits)
        self._under_way = 0
        self._losses: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._open = sum(len(self._missing(edit)) for edit in edits)

    def run(self, servers: Sequence[Worker], stop: threading.Event) -> None:
        """Return when all is done, or failed, or no server is left.

        Raises:
            KeyboardInterrupt: after the servers were told to drop what they had of this run.
        """
        self._say(f"{self._open} methods to run on {len(self._waiting)} edits")
        with ThreadPoolExecutor(len(servers)) as threads:
            working = [threads.submit(self._work, server) for server in servers]
            try:
                while not all(future.done() for future in working):
                    time.sleep(0.1)
            finally:
                # Nobody is left waiting for an edit that may be given back.
                stop.set()
                with self._changed:
                    self._changed.notify_all()
        for future in working:
            future.result()

    def unfinished(self) -> list[str]:
        """Names of the edits that nobody did."""
        return [edit.name for edit in self._waiting]

    def _work(self, server: Worker) -> None:
        while edit := self._take(server.stop):
            try:
                self._do(server, edit)
            except Stopped:
                self._give_back(edit)
                server.cancel()
                return
            except ServerLost as error:
                self.lost.append(server.url)
                self._say(f"{server.url} is given up ({error}); others take over '{edit.name}'")
                self._losses[edit.name] += 1
                if self._losses[edit.name] < MOST_LOSSES:
                    self._give_back(edit)
                else:
                    for method in self._missing(edit):
                        self._fail(server, edit, method, f"lost with {MOST_LOSSES} servers")
                    self._finish()
                return
            except BaseException:
                server.stop.set()
                raise
            self._finish()

    def _take(self, stop: threading.Event) -> Task | None:
        with self._changed:
            while not self._waiting and self._under_way and not stop.is_set():
                self._changed.wait(1)
            if not self._waiting or stop.is_set():
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def _give_back(self, edit: Task) -> None:
        with self._changed:
            self._waiting.appendleft(edit)
            self._under_way -= 1
            self._changed.notify_all()

    def _finish(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _missing(self, edit: Task) -> list[str]:
        settings = self.protocol.settings
        return [m for m in self.methods if not self.store.is_done(edit.name, m, settings(m))]

    def _do(self, server: Worker, edit: Task) -> None:
        queued: deque[tuple[str, str]] = deque()
        missing = self._missing(edit)
        if missing:
            self._say(f"{edit.name}: {', '.join(missing)} on {server.url} ...")
            suffix = edit.picture.suffix
            photograph = server.lend(edit.picture.read_bytes(), f"photograph{suffix}")
        for method in missing:
            prompt = method_prompt(self.protocol, method, photograph, edit.text)
            try:
                queued.append((method, server.submit(prompt)))
            except (PromptRejected, JobFailed) as error:
                self._fail(server, edit, method, f"the server refused it: {error}")
            if len(queued) == AHEAD:
                self._collect(server, edit, *queued.popleft())
        while queued:
            self._collect(server, edit, *queued.popleft())
        try:
            scores.score(server, self.store, self.protocol, edit)
        except (PromptRejected, JobFailed) as error:
            self._say(f"'{edit.name}' could not be scored: {error}")

    def _collect(self, server: Worker, edit: Task, method: str, prompt_id: str) -> None:
        try:
            outputs, seconds = server.wait(prompt_id)
            pictures = {
                setting: server.fetch(outputs[picture_node(index)])
                for index, setting in enumerate(self.protocol.settings(method))
            }
            blank = [setting or method for setting, p in pictures.items() if is_blank(p)]
            if blank:
                raise JobFailed(f"the picture has one colour only: {', '.join(blank)}")
            seen = server.fetch(outputs[SEEN])
        except JobFailed as error:
            self._fail(server, edit, method, str(error))
            return
        self.store.keep(edit, method, pictures, seen, server=server.url, seconds=seconds)
        took = "" if seconds is None else f" in {seconds:.0f} s"
        self._told(f"{edit.name}: {method}{took} on {server.url}")

    def _fail(self, server: Worker, edit: Task, method: str, error: str) -> None:
        self.store.fail(edit, method, error, server=server.url)
        self._told(f"{edit.name}: {method} FAILED on {server.url}: {error}")

    def _told(self, line: str) -> None:
        with self._changed:
            self._open -= 1
            self._say(f"[{self._open} to go] {line}")
