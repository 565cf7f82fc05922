"""A running ComfyUI as a job sees it: its queue takes prompts, its history gives results."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.error
from collections.abc import Iterator
from typing import Any

from talk.api import Api, Prompt

from tedbench.prompts import NEEDED
from tedbench.protocol import Protocol

Nodes = dict[str, Any]

NO_ANSWER = (
    urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException,
    json.JSONDecodeError,
)  # fmt: skip


class Unusable(Exception):
    """A server that cannot take part, or none that can; the message says why."""


class ServerLost(Exception):
    """A server does not answer any more."""


class Stopped(Exception):
    """Nobody wants the result any more."""


class JobFailed(Exception):
    """The server answered that it cannot do a prompt, or did not finish it."""


class Server(Api):
    """The server at ``url``, which does one prompt after the other.

    Args:
        url: such as `http://127.0.0.1:8188`.
        stop: when set, the prompt that runs is taken back and ``Stopped`` raised.

    Attributes:
        pause: seconds between two looks at the history.
    """

    pause = 0.5

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__(url)
        self.stop = stop

    def describe(self) -> Nodes:
        """What the server says of the nodes that prompts need.

        Raises:
            Unusable: it does not answer, or lacks some.
        """
        try:
            known = self.get("/object_info")
        except NO_ANSWER as error:
            raise Unusable(f"{self.url} does not answer as a ComfyUI: {error}") from None
        if missing := [name for name in NEEDED if name not in known]:
            raise Unusable(f"{self.url} lacks the nodes {', '.join(missing)}")
        return {name: known[name] for name in NEEDED}

    def run(self, prompt: Prompt) -> tuple[dict[str, Any], float | None]:
        """Run a prompt; return what its nodes put out, and the seconds that it ran.

        Raises:
            PromptRejected, JobFailed: the server refused it, a node raised, it was cancelled, or
                the server forgot it.
            ServerLost, Stopped: nobody will know.
        """
        with self._answering():
            prompt_id = self.queue(prompt)
        while not self.stop.is_set():
            with self._answering():
                # In this order: a prompt is in the history before it leaves the queue.
                queue = self.get("/queue")
                ended = self.get(f"/history/{prompt_id}").get(prompt_id)
            if ended:
                return _outcome(ended)
            if all(prompt_id != item[1] for state in queue.values() for item in state):
                raise JobFailed("the server does not know it any more: restarted, or cleared?")
            self.stop.wait(self.pause)
        with contextlib.suppress(*NO_ANSWER):
            # Out of the queue, or ended where it runs; other people's prompts stay.
            self.post("/queue", {"delete": [prompt_id]})
            self.post("/interrupt", {"prompt_id": prompt_id})
        raise Stopped

    def fetch(self, output: dict[str, Any]) -> bytes:
        """The first picture of a node's output, encoded."""
        with self._answering():
            return self.picture(output["images"][0])

    def lend(self, picture: bytes, name: str) -> str:
        """Put a picture into the server's temporary folder; return the name for LoadImage."""
        with self._answering():
            return self.put(picture, name, type="temp", subfolder="tedbench")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except urllib.error.HTTPError as error:
            raise JobFailed(f"{error.url}: {error}") from None
        except NO_ANSWER as error:
            raise ServerLost(f"{self.url} does not answer any more: {error}") from None


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


def defaults(nodes: Nodes, node: str, **changed: Any) -> dict[str, Any]:
    """Every input of a node that has a default, with it or with what ``changed`` says."""
    inputs = nodes[node]["input"]
    values = {
        name: rest[0]["default"]
        for name, (_, *rest) in (inputs["required"] | inputs.get("optional", {})).items()
        if rest and "default" in rest[0]
    }
    unknown = set(changed) - set(values)
    if unknown:
        raise Unusable(f"{node} has no input {', '.join(sorted(unknown))}")
    return values | changed


def check(url: str, nodes: Nodes, protocol: Protocol) -> None:
    """Make sure that a server can run the protocol, before anything runs.

    Raises:
        Unusable: it has no such checkpoint, or its Imagic nodes have other inputs.
    """
    kind, *rest = nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"]
    offered = kind if isinstance(kind, list) else rest[0]["options"]
    if protocol.checkpoint not in offered:
        raise Unusable(
            f"{url}: CheckpointLoaderSimple has no '{protocol.checkpoint}', "
            f"only {', '.join(offered)}"
        )
    for node, inputs in (
        ("ImagicOptimizeEmbedding", protocol.optimize), ("ImagicFinetuneModel", protocol.finetune)
    ):  # fmt: skip
        if set(defaults(nodes, node)) != set(inputs):
            raise Unusable(f"{url} has another version of the pack: {node} differs")
