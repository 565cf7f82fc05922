"""A server with ComfyUI's API, for tests of who does what and what becomes of trouble."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tedbench.pictures import png
from tedbench.prompts import NEEDED

Prompt = dict[str, Any]


class StandIn(ThreadingHTTPServer):
    """A server with ComfyUI's API that makes pictures of noise.

    Args:
        seconds: how long each prompt runs.
        trouble: told each prompt before it runs; what it returns is a node's error, and what it
            raises ends the server.
    """

    daemon_threads = True

    def __init__(
        self, seconds: float = 0.0, trouble: Callable[[Prompt], str | None] = lambda _: None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seconds, self.trouble, self.draw = seconds, trouble, png
        self.queue: list[tuple[str, Prompt]] = []
        self.longest = 0
        self.history: dict[str, Any] = {}
        self.ran: list[Prompt] = []
        self.uploads: dict[str, bytes] = {}
        self.fields: list[str] = []
        self.posted: list[tuple[str, Any]] = []
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        threading.Thread(target=self.execute, daemon=True).start()

    def end(self) -> None:
        """Stop answering."""
        self.ended.set()
        self.shutdown()
        self.server_close()

    def execute(self) -> None:
        """Do what is queued, one after the other."""
        while not self.ended.is_set():
            if not self.queue:
                time.sleep(0.005)
                continue
            prompt_id, prompt = self.queue[0]
            try:
                error = self.trouble(prompt)
            except SystemExit:
                return self.end()
            if not error:
                time.sleep(self.seconds)
            self.ran.append(prompt)
            messages: list[Any] = [["execution_start", {"timestamp": 1000}]]
            if error:
                messages.append(
                    ["execution_error", {"node_type": "KSampler", "exception_message": error}]
                )
            else:
                messages.append(["execution_success", {"timestamp": 3000}])
            status = {"status_str": "error" if error else "success", "messages": messages}
            self.history[prompt_id] = {"status": status, "outputs": self.outputs(prompt)}
            self.queue = [one for one in self.queue if one[0] != prompt_id]

    def outputs(self, prompt: Prompt) -> dict[str, Any]:
        """What the nodes of a prompt put out."""
        made: dict[str, Any] = {}
        for node, one in prompt.items():
            if one["class_type"] == "PreviewImage":
                made[node] = {"images": [{"filename": node, "subfolder": "", "type": "temp"}]}
        return made


class Handler(BaseHTTPRequestHandler):
    """Answers as ComfyUI does."""

    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: Any, code: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/queue":
            running = [[0, prompt_id, {}] for prompt_id, _ in self.server.queue]
            self.answer({"queue_running": running[:1], "queue_pending": running[1:]})
        elif path.startswith("/history/"):
            ended = self.server.history
            self.answer({k: v for k, v in ended.items() if k == path.split("/")[-1]})
        elif path == "/view":
            name = urllib.parse.parse_qs(query)["filename"][0]
            self.answer(self.server.draw(sum(name.encode())))
        else:
            self.answer(described())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            head, _, content = body.partition(b'filename="')
            name, _, content = content.partition(b'"\r\n\r\n')
            self.server.fields.append(head.decode())
            self.server.uploads[name.decode()] = content.rpartition(b"\r\n--")[0]
            self.answer({"name": name.decode(), "subfolder": "tedbench", "type": "temp"})
            return
        told = json.loads(body)
        self.server.posted.append((self.path, told))
        if self.path == "/prompt":
            if told["prompt"].get("target", {}).get("inputs", {}).get("text") == "Reject me":
                self.answer({"error": {"message": "not this one"}}, 400)
                return
            prompt_id = f"{id(self.server)}-{len(self.server.posted)}"
            self.server.queue.append((prompt_id, told["prompt"]))
            self.server.longest = max(self.server.longest, len(self.server.queue))
            self.answer({"prompt_id": prompt_id})
        else:
            self.answer({})


def described() -> dict[str, Any]:
    """A description of the nodes, as far as it is read."""
    nodes: dict[str, Any] = {name: {"input": {"required": {}}} for name in NEEDED}
    nodes["CheckpointLoaderSimple"]["input"]["required"] = {"ckpt_name": [["tiny.safetensors"]]}
    trained = {
        "required": {"model": ["MODEL", {}], "steps": ["INT", {"default": 2}],
                     "seed": ["INT", {"default": 0}]},
        "optional": {"recipe": ["COMBO", {"options": ["as set"], "default": "as set"}]},
    }  # fmt: skip
    for node in ("ImagicOptimizeEmbedding", "ImagicFinetuneModel"):
        nodes[node]["input"] = trained
    return nodes


def kind(prompt: Prompt) -> str:
    """Which method a prompt is of."""
    if "tuned" in prompt:
        return "imagic"
    if "optimized" in prompt:
        return "imagic_without_b"
    return "ddib" if "flipped" in prompt else "sdedit"


def text(prompt: Prompt) -> str:
    """The sentence of a prompt."""
    return str(prompt["target"]["inputs"]["text"])


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that other threads or processes do.

    Raises:
        AssertionError: it did not happen in time.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
