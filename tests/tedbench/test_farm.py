"""The TEdBench runner over servers that stand in for ComfyUI: resume, failures, lost servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from machine.environment import TESTS
from PIL import Image

from tedbench import benchmark, scores
from tedbench.farm import Farm
from tedbench.prompts import NEEDED
from tedbench.protocol import METHODS
from tedbench.servers import Unusable, Worker, check
from tedbench.store import Store
from tedbench.test_tedbench import RUN, encoded, make_benchmark, png

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
        self.ended.set()
        self.shutdown()
        self.server_close()

    def execute(self) -> None:
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
        made: dict[str, Any] = {}
        for node, one in prompt.items():
            if one["class_type"] == "PreviewImage":
                made[node] = {"images": [{"filename": node, "subfolder": "", "type": "temp"}]}
            if one["class_type"] == "ImagicScoreEdits":
                count = prompt["numbers"]["inputs"]["count"]
                measures = {"SSIM": [1 - i / 100 for i in range(count)]}
                made[node] = {"scores": [json.dumps({"measures": measures})]}
        return made


class Handler(BaseHTTPRequestHandler):
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
    nodes = {name: {"input": {"required": {}}} for name in NEEDED}
    nodes["CheckpointLoaderSimple"]["input"]["required"] = {"ckpt_name": [["tiny.safetensors"]]}
    for loader in ("CLIPLoader", "CLIPVisionLoader"):
        files = {"clip_name": ["COMBO", {"options": [f"{loader}.safetensors", "l14.safetensors"]}]}
        nodes[loader]["input"]["required"] = files
    trained = {
        "required": {"model": ["MODEL", {}], "steps": ["INT", {"default": 2}],
                     "seed": ["INT", {"default": 0}]},
        "optional": {"recipe": ["COMBO", {"options": ["as set"], "default": "as set"}]},
    }  # fmt: skip
    for node in ("ImagicOptimizeEmbedding", "ImagicFinetuneModel"):
        nodes[node]["input"] = trained
    return nodes


@pytest.fixture
def start() -> Iterator[Callable[..., StandIn]]:
    """Starts stand-ins, and ends them after the test."""
    started: list[StandIn] = []

    def begin(*args: Any, **kwargs: Any) -> StandIn:
        started.append(StandIn(*args, **kwargs))
        return started[-1]

    yield begin
    for one in started:
        if not one.ended.is_set():
            one.end()


class Trial:
    """A run of the farm in this process."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.edits = make_benchmark(folder / "tedbench", count)
        self.store = Store(folder / "out")
        self.said: list[str] = []

    def run(self, *servers: StandIn, methods=METHODS, edits=None, stop=None) -> Farm:
        stop = stop or threading.Event()
        chosen = self.edits if edits is None else edits
        farm = Farm(self.store, RUN, chosen, methods, self.said.append)
        farm.run([Worker(s.url, stop, patience=0.4, pause=0.01) for s in servers], stop)
        return farm

    def done(self) -> set[tuple[str, str]]:
        return {
            (edit.name, method) for edit in self.edits for method in METHODS
            if self.store.is_done(edit.name, method, RUN.settings(method))
        }  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


def kind(prompt: Prompt) -> str:
    """Which method a prompt is of."""
    if "scored" in prompt:
        return "score"
    if "tuned" in prompt:
        return "imagic"
    if "optimized" in prompt:
        return "imagic_without_b"
    return "ddib" if "flipped" in prompt else "sdedit"


def test_all_methods_are_run_and_scored(trial: Trial, start) -> None:
    server = start()
    trial.run(server)
    assert [kind(prompt) for prompt in server.ran] == [*METHODS, "score"] * 2
    assert len(trial.done()) == 8 and trial.store.failures() == []
    first = trial.edits[0]
    lying = trial.store.folder / "imagic" / "eta_0.50" / "pet0.png-A_photo_of_pet_0_sitting.png"
    assert lying.is_file()
    assert trial.store.record(first.name, "imagic")["seconds"] == 2.0
    rows = trial.store.scores(first.name)["rows"]
    assert [row["SSIM"] for row in rows] == [round(1 - i / 100, 4) for i in range(10)]
    assert len(scores.report(trial.store, RUN)["edits"]) == 2
    # The server's own folders stay as they were.
    assert all('name="type"\r\n\r\ntemp\r\n' in fields for fields in server.fields)
    assert server.uploads["photograph.png"] == trial.edits[1].picture.read_bytes()


def test_a_server_has_one_prompt_waiting_and_no_more(trial: Trial, start) -> None:
    server = start(seconds=0.05)
    trial.run(server)
    assert server.longest == 2


def test_what_is_done_is_not_done_again(trial: Trial, start) -> None:
    server = start()
    trial.run(server, methods=("imagic", "sdedit"), edits=trial.edits[:1])
    assert [kind(prompt) for prompt in server.ran] == ["imagic", "sdedit", "score"]
    name = trial.edits[0].name
    trial.store.picture(name, "sdedit", "strength_0.40").unlink()
    again = start()
    trial.run(again, edits=trial.edits[:1])
    assert [kind(p) for p in again.ran] == ["imagic_without_b", "sdedit", "ddib", "score"]
    finished = start()
    trial.run(finished, edits=trial.edits[:1])
    assert finished.ran == []


def test_a_failing_prompt_is_recorded_and_stops_nothing(trial: Trial, start) -> None:
    def trouble(prompt: Prompt) -> str | None:
        mine = prompt["target"]["inputs"]["text"].startswith("A photo of pet 0")
        return "out of memory" if mine and kind(prompt) == "imagic_without_b" else None

    trial.run(start(trouble=trouble))
    ((name, method, error),) = trial.store.failures()
    assert (name, method) == (trial.edits[0].name, "imagic_without_b")
    assert error == "KSampler: out of memory"
    assert len(trial.done()) == 7
    assert any("FAILED" in line and "out of memory" in line for line in trial.said)
    found = scores.means(trial.store, RUN)
    assert found["left_out"] == {name: "lacks imagic_without_b"}

    mended = start()
    trial.run(mended)
    assert [kind(prompt) for prompt in mended.ran] == ["imagic_without_b", "score"]
    assert trial.store.failures() == [] and len(trial.done()) == 8


def test_a_rejected_prompt_is_recorded(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 1)
    listed = [{"img_name": "pet0.png", "target_text": "Reject me"}]
    (tmp_path / "tedbench" / "input_list.json").write_text(json.dumps(listed))
    trial.edits = benchmark.read(tmp_path / "tedbench")
    server = start()
    trial.run(server)
    assert server.ran == []
    assert {method for _, method, _ in trial.store.failures()} == set(METHODS)
    assert all("not this one" in error for *_, error in trial.store.failures())


def test_a_blank_picture_is_a_failure(trial: Trial, start) -> None:
    server = start()
    server.draw = lambda _: encoded(Image.new("RGB", (8, 8)))
    trial.run(server, edits=trial.edits[:1], methods=("ddib",))
    ((_, _, error),) = trial.store.failures()
    assert error == "the picture has one colour only: ddib"


def test_servers_share_the_work(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 6)
    servers = start(seconds=0.02), start(seconds=0.02)
    trial.run(*servers)
    assert len(trial.done()) == 24
    by_edit = [{p["target"]["inputs"]["text"] for p in server.ran} for server in servers]
    assert min(map(len, by_edit)) >= 2
    # An edit stays with one server, which thus trains its stage A once.
    assert not by_edit[0] & by_edit[1]


def test_a_lost_server_gives_its_work_back_and_is_named(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 4)
    ran: list[Prompt] = []

    def dies_at_third(prompt: Prompt) -> None:
        ran.append(prompt)
        if len(ran) == 3:
            (name,) = (e.name for e in trial.edits if e.text == prompt["target"]["inputs"]["text"])
            wait_until(lambda: (name, "imagic_without_b") in trial.done())
            raise SystemExit

    mortal, other = start(trouble=dies_at_third), start(seconds=0.02)
    farm = trial.run(mortal, other)
    assert farm.lost == [mortal.url]
    assert any(line.startswith(f"{mortal.url} is given up") for line in trial.said)
    assert len(trial.done()) == 16 and farm.unfinished() == []
    # What the lost one had finished was not lost with it.
    text = mortal.ran[0]["target"]["inputs"]["text"]
    again = [kind(p) for p in other.ran if p["target"]["inputs"]["text"] == text]
    assert again == ["sdedit", "ddib", "score"]


def test_without_a_server_left_the_rest_is_named(tmp_path: Path, start) -> None:
    def dies(_: Prompt) -> None:
        raise SystemExit

    trial = Trial(tmp_path, 3)
    farm = trial.run(start(trouble=dies))
    assert farm.unfinished() == [edit.name for edit in trial.edits]
    assert trial.store.failures() == [] and trial.done() == set()


def test_an_edit_that_ends_servers_is_not_given_to_all_of_them(tmp_path: Path, start) -> None:
    def dies_of_pet_0(prompt: Prompt) -> None:
        if prompt["target"]["inputs"]["text"].startswith("A photo of pet 0"):
            raise SystemExit

    trial = Trial(tmp_path, 3)
    farm = trial.run(*(start(trouble=dies_of_pet_0) for _ in range(3)))
    assert len(farm.lost) == 2
    assert {(n, e) for n, _, e in trial.store.failures()} == {
        (trial.edits[0].name, "lost with 2 servers")
    }
    assert len(trial.done()) == 8


def test_a_forgotten_prompt_is_a_failure(trial: Trial, start) -> None:
    server = start(seconds=0.05)

    def forgets(prompt: Prompt) -> None:
        if kind(prompt) == "sdedit":
            server.queue.clear()
            server.history = type("Forgetful", (dict,), {"__setitem__": lambda *_: None})()

    server.trouble = forgets
    trial.run(server, methods=("sdedit",), edits=trial.edits[:1])
    ((_, _, error),) = trial.store.failures()
    assert "does not know it any more" in error


def test_stopping_takes_back_what_is_queued(trial: Trial, start) -> None:
    server, stop = start(), threading.Event()

    def posted(path: str) -> list[Any]:
        return [told for to, told in server.posted if to == path]

    def stops_at_second(prompt: Prompt) -> None:
        if kind(prompt) == "imagic_without_b":
            wait_until(lambda: len(server.queue) == 2)
            stop.set()
            wait_until(lambda: len(posted("/interrupt")) == 2)

    server.trouble = stops_at_second
    trial.run(server, stop=stop)
    assert trial.done() == {(trial.edits[0].name, "imagic")}
    taken = [told["delete"][0] for told in posted("/queue")]
    ended = [told["prompt_id"] for told in posted("/interrupt")]
    assert len(taken) == 2 and taken == ended
    finishing = start()
    trial.run(finishing)
    assert [kind(prompt) for prompt in finishing.ran][:2] == ["imagic_without_b", "sdedit"]
    assert len(trial.done()) == 8


def test_servers_that_cannot_take_part_are_told_what_they_lack() -> None:
    server, nodes = Worker("http://nowhere", threading.Event()), described()
    from dataclasses import replace

    full = {"steps": 2, "seed": 0, "recipe": "as set"}
    run = replace(RUN, optimize=full, finetune=full, clip="l14.safetensors")
    check(server, run, nodes)
    for wrong, complaint in [
        (replace(run, checkpoint="b.safetensors"), "no 'b.safetensors', only tiny.safetensors"),
        (replace(run, clip="CLIPLoader.safetensors"), "CLIPVisionLoader has no 'CLIPLoader"),
        (replace(run, finetune={"steps": 2}), "another version of the pack: ImagicFinetuneModel"),
    ]:
        with pytest.raises(Unusable, match=complaint):
            check(server, wrong, nodes)
    with pytest.raises(Unusable, match="lacks the nodes FlipSigmas"):
        check(server, run, {k: v for k, v in nodes.items() if k != "FlipSigmas"})


# ---- the command ----------------------------------------------------------------------------


def words(folder: Path, *urls: str, size: int = 64) -> list[str]:
    return [
        sys.executable, str(TESTS / "tedbench"), "run", str(folder / "tedbench"),
        str(folder / "out"), "--checkpoint", "tiny.safetensors", "--server", *urls,
        "--etas", "0", "1", "--strengths", "0.5", "--size", str(size),
    ]  # fmt: skip


def test_the_command_runs_resumes_and_refuses(trial: Trial, start, tmp_path: Path) -> None:
    server = start()
    first = subprocess.run(words(tmp_path, server.url), capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "| imagic | eta 0.00 (shown to people) |" in first.stdout.replace("1.00 (", "0.00 (")
    assert (tmp_path / "out" / "page" / "index.html").is_file()
    assert (tmp_path / "out" / "curves.png").is_file()
    ran = len(server.ran)
    again = subprocess.run(words(tmp_path, server.url), capture_output=True, text=True)
    assert again.returncode == 0 and len(server.ran) == ran
    other = subprocess.run(words(tmp_path, server.url, size=128), capture_output=True, text=True)
    assert other.returncode == 2 and "size: 64 there, 128 now" in other.stderr
    assert len(server.ran) == ran


def test_the_command_names_what_failed(trial: Trial, start, tmp_path: Path) -> None:
    server = start(trouble=lambda p: "no memory" if kind(p) == "ddib" else None)
    done = subprocess.run(words(tmp_path, server.url), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("ddib: KSampler: no memory") == 2
    assert "run the same command again" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_stopped_run_can_go_on(trial: Trial, start, tmp_path: Path, sent: int) -> None:
    server = start(seconds=1.0)
    run = subprocess.Popen(
        words(tmp_path, server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not server.ran and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.6)
    if sent == signal.SIGINT:
        os.killpg(run.pid, sent)  # as a terminal does
    else:
        run.send_signal(sent)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130 and "run the same command again to go on" in told
    assert "Traceback" not in told
    assert [path for path, _ in server.posted].count("/interrupt") >= 1
    server.seconds = 0
    again = subprocess.run(words(tmp_path, server.url), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    kinds = [kind(prompt) for prompt in server.ran]
    assert kinds.count("imagic") == 2 and kinds.count("score") == 2
