"""A running ComfyUI as the runner sees it: its queue takes prompts, its history gives results."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any, TypeVar

from talk.api import Api, Prompt

from tedbench.prompts import NEEDED
from tedbench.protocol import Protocol

Result = TypeVar("Result")

NO_ANSWER = (
    urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException,
    json.JSONDecodeError,
)  # fmt: skip


class Unusable(Exception):
    """A server that cannot take part; the message says why."""


class ServerLost(Exception):
    """A server does not answer any more."""


class Stopped(Exception):
    """The user wants to end."""


class JobFailed(Exception):
    """The server answered that it cannot do a prompt, or did not finish it."""


class Worker(Api):
    """The server at ``url``, which works for a run.

    Args:
        url: such as `http://127.0.0.1:8188`.
        stop: when set, whatever waits raises ``Stopped``.
        patience: seconds without an answer after which the server counts as lost.
        pause: seconds between two looks at the history.
    """

    def __init__(
        self, url: str, stop: threading.Event, patience: float = 60, pause: float = 0.5
    ) -> None:
        super().__init__(url)
        self.stop = stop
        self.patience = patience
        self.pause = pause
        self.pending: set[str] = set()

    def describe(self) -> dict[str, Any]:
        """What the server says of its nodes.

        Raises:
            Unusable: it does not answer.
        """
        try:
            return dict(self.get("/object_info"))
        except NO_ANSWER as error:
            raise Unusable(f"{self.url} does not answer as a ComfyUI: {error}") from None

    def submit(self, prompt: Prompt) -> str:
        """Put a prompt into the server's queue; return its id.

        Raises:
            PromptRejected, ServerLost, Stopped: it is not there.
        """
        prompt_id = self._ask(lambda: self.queue(prompt))
        self.pending.add(prompt_id)
        return prompt_id

    def wait(self, prompt_id: str) -> tuple[dict[str, Any], float | None]:
        """Wait for a prompt; return what its nodes put out, and the seconds that it ran.

        Raises:
            JobFailed: a node raised, it was cancelled, or the server forgot it.
            ServerLost, Stopped: nobody will know.
        """
        while True:
            # In this order: a prompt is in the history before it leaves the queue.
            queued = self._queued()
            ended = self._ask(lambda: self.get(f"/history/{prompt_id}")).get(prompt_id)
            if ended:
                self.pending.discard(prompt_id)
                return _outcome(ended)
            if prompt_id not in queued:
                self.pending.discard(prompt_id)
                raise JobFailed("the server does not know it any more: restarted, or cleared?")
            if self.stop.wait(self.pause):
                raise Stopped

    def fetch(self, output: dict[str, Any]) -> bytes:
        """The first picture of a node's output, encoded."""
        return self._ask(lambda: self.picture(output["images"][0]))

    def lend(self, picture: bytes, name: str) -> str:
        """Put a picture into the server's temporary folder; return the name for LoadImage."""
        return self._ask(lambda: self.put(picture, name, type="temp", subfolder="tedbench"))

    def cancel(self) -> None:
        """Take back what is in the queue, end what runs; other people's prompts stay."""
        for prompt_id in self.pending:
            try:
                self.post("/queue", {"delete": [prompt_id]})
                self.post("/interrupt", {"prompt_id": prompt_id})
            except NO_ANSWER:
                return

    def _queued(self) -> set[str]:
        queue = self._ask(lambda: self.get("/queue"))
        return {item[1] for state in ("queue_running", "queue_pending") for item in queue[state]}

    def _ask(self, question: Callable[[], Result]) -> Result:
        """Ask until there is an answer; also a refusal is one."""
        deadline = time.monotonic() + self.patience
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return question()
            except urllib.error.HTTPError as error:
                raise JobFailed(f"{error.url}: {error}") from None
            except NO_ANSWER as error:
                if time.monotonic() > deadline:
                    raise ServerLost(f"no answer for {self.patience:g} s: {error}") from None
            self.stop.wait(min(1, self.patience / 4))


def _outcome(ended: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    messages = dict(ended["status"]["messages"])
    if "execution_error" in messages:
        error = messages["execution_error"]
        raise JobFailed(f"{error['node_type']}: {error['exception_message'].strip()}")
    if ended["status"]["status_str"] != "success":
        raise JobFailed("it was cancelled on the server")
    times = [messages.get(m, {}).get("timestamp") for m in ("execution_start", "execution_success")]
    seconds = None if None in times else round((times[1] - times[0]) / 1000, 1)
    return ended["outputs"], seconds


def choices(described: dict[str, Any], node: str, name: str) -> list[str]:
    """What the server offers for an input."""
    kind, *rest = described[node]["input"]["required"][name]
    return list(kind if isinstance(kind, list) else rest[0]["options"])


def defaults(described: dict[str, Any], node: str, **changed: Any) -> dict[str, Any]:
    """Every input of a node that has a default, with it or with what ``changed`` says."""
    inputs = described[node]["input"]
    values = {
        name: rest[0]["default"]
        for name, (_, *rest) in (inputs["required"] | inputs.get("optional", {})).items()
        if rest and "default" in rest[0]
    }
    unknown = set(changed) - set(values)
    if unknown:
        raise Unusable(f"{node} has no input {', '.join(sorted(unknown))}")
    return values | changed


def check(server: Worker, protocol: Protocol, described: dict[str, Any]) -> None:
    """Make sure that a server can run the protocol, before anything runs.

    Raises:
        Unusable: nodes or files are missing, or its Imagic nodes have other inputs.
    """
    missing = [node for node in NEEDED if node not in described]
    if missing:
        raise Unusable(f"{server.url} lacks the nodes {', '.join(missing)}")
    files = [("CheckpointLoaderSimple", "ckpt_name", protocol.checkpoint)]
    if protocol.clip:
        files += [(n, "clip_name", protocol.clip) for n in ("CLIPLoader", "CLIPVisionLoader")]
    for node, name, file in files:
        offered = choices(described, node, name)
        if file not in offered:
            raise Unusable(f"{server.url}: {node} has no '{file}', only {', '.join(offered)}")
    for node, inputs in (
        ("ImagicOptimizeEmbedding", protocol.optimize), ("ImagicFinetuneModel", protocol.finetune)
    ):  # fmt: skip
        if set(defaults(described, node)) != set(inputs):
            raise Unusable(f"{server.url} has another version of the pack: {node} differs")
