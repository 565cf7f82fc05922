"""A front end: the calls of the HTTP API, and what the server tells over the web socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from PIL import Image

from talk.api import Api, Prompt


class PromptFailed(Exception):
    """A node raised; ``details`` is the server's ``execution_error``."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(
            f"{details.get('node_type')} (node {details.get('node_id')}): "
            f"{details.get('exception_message')}\n{''.join(details.get('traceback', []))}"
        )
        self.details = details


class PromptInterrupted(Exception):
    """The prompt was cancelled."""


@dataclass(frozen=True)
class Event:
    """One message of the web socket; ``picture`` holds the encoded image of a preview."""

    type: str
    data: dict[str, Any]
    picture: bytes = b""


@dataclass
class Result:
    """What became of a prompt: which nodes ran, which the cache served, and what they put out."""

    prompt_id: str
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)


class Client(Api):
    """One front end connected to the server at ``url``; use it as a context manager."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._connected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        if not self._connected.wait(30):
            raise ConnectionError(f"no web socket at {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, as the server is gone
            self._loop.call_soon_threadsafe(self._reader.cancel)
        self._thread.join()

    def events(self, prompt_id: str, timeout: float = 900) -> Iterator[Event]:
        """Yield the messages of one prompt until its record is in the history.

        Raises:
            ConnectionError: the server went away.
            TimeoutError: it said nothing for ``timeout`` seconds.
        """
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"no message in {timeout:.0f} s") from None
            if event is None:
                self._events.put(None)
                raise ConnectionError("the server closed the web socket")
            if event.data.get("prompt_id", prompt_id) != prompt_id:
                continue
            yield event
            # Comes after the record is written; "execution_success" comes before.
            if event.type == "executing" and event.data.get("node") is None:
                return

    def run(
        self,
        prompt: Prompt,
        on_event: Callable[[Event], None] = lambda event: None,
        timeout: float = 900,
    ) -> Result:
        """Queue a prompt, hand each message to ``on_event``, and return when it is done.

        Raises:
            PromptRejected, PromptFailed, PromptInterrupted: it did not get that far.
        """
        prompt_id = self.queue(prompt)
        result = Result(prompt_id)
        failure: Exception | None = None
        for event in self.events(prompt_id, timeout):
            on_event(event)
            if event.type == "executing" and event.data.get("node"):
                result.executed.append(event.data["node"])
            elif event.type == "execution_cached":
                result.cached.extend(event.data["nodes"])
            elif event.type == "execution_error":
                failure = PromptFailed(event.data)
            elif event.type == "execution_interrupted":
                failure = PromptInterrupted(prompt_id)
        if failure:
            raise failure
        result.outputs = self.history(prompt_id)["outputs"]
        return result

    def pictures(self, result: Result, node: str) -> list[bytes]:
        """Return the encoded images that a node saved."""
        return [self.picture(entry) for entry in result.outputs[node]["images"]]

    def images(self, result: Result, node: str) -> list[Image.Image]:
        """Return the images that a node saved, in RGB."""
        return [Image.open(io.BytesIO(p)).convert("RGB") for p in self.pictures(result, node)]

    def _listen(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._reader = self._loop.create_task(self._read_messages())
        try:
            self._loop.run_until_complete(self._reader)
        except (asyncio.CancelledError, aiohttp.ClientError):
            pass  # a reader of events hears of it through the None below
        finally:
            self._events.put(None)
            self._loop.close()

    async def _read_messages(self) -> None:
        address = f"{self.url}/ws?clientId={self.id}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            # Asks for previews that say which node they belong to.
            flags = {"supports_preview_metadata": True}
            await socket.send_json({"type": "feature_flags", "data": flags})
            self._connected.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    self._events.put(Event(told["type"], told.get("data") or {}))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self._events.put(_binary(message.data))


def _binary(message: bytes) -> Event:
    kind = int.from_bytes(message[:4], "big")
    if kind == 4:
        length = int.from_bytes(message[4:8], "big")
        data = json.loads(message[8 : 8 + length])
        return Event("preview", data, message[8 + length :])
    return Event("preview" if kind == 1 else "binary", {}, message[8:])
