"""The real server: it starts, takes pictures and prompts, tells what it does, and always ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image
from talk.api import PromptRejected
from talk.client import Client, PromptInterrupted

from machine.environment import TESTS
from machine.host_process import Server, ServerError, serve

# Answers like a server, in a fraction of a second, and leaves its process ids to be checked.
STAND_IN = """
    import http.server, os, pathlib, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
    port = int(sys.argv[sys.argv.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "main.py").write_text(textwrap.dedent(STAND_IN))
    (folder / "pack").mkdir()
    monkeypatch.setenv("PIDS", str(folder / "pids"))
    return folder


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    # A process that ended stays listed until its parent asks for it.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_ended(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 10
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if runs(pid)]


def picture(size: tuple[int, int] = (12, 8)) -> Image.Image:
    gradient = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (gradient, gradient.rotate(180), gradient.rotate(90)))


def inversion(name: str) -> dict[str, dict[str, object]]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "i"}},
    }


@pytest.mark.skipif(os.name == "nt", reason="asks POSIX for processes")
def test_server_and_its_children_end_when_the_body_raises(stand_in: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with serve(stand_in, pack=stand_in / "pack") as server:
            pids = [int(word) for word in (stand_in / "pids").read_text().split()]
            assert all(map(runs, pids))
            base = server.base
            raise ZeroDivisionError
    assert wait_until_ended(pids) == []
    assert not base.exists()
    assert (stand_in / "pack").exists()


@pytest.mark.skipif(os.name == "nt", reason="asks POSIX for processes")
def test_server_ends_when_its_starter_is_killed(stand_in: Path) -> None:
    code = f"""
        import sys, time
        sys.path.insert(0, {str(TESTS)!r})
        from pathlib import Path
        from machine.host_process import serve
        folder = Path({str(stand_in)!r})
        with serve(folder, pack=folder / "pack"):
            print("up", flush=True)
            time.sleep(600)
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout and starter.stdout.readline() == "up\n"
    server = int((stand_in / "pids").read_text().split()[0])
    assert runs(server)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    assert wait_until_ended([server]) == []


def test_server_that_dies_at_start_shows_its_log(stand_in: Path) -> None:
    (stand_in / "main.py").write_text("raise SystemExit('no such flux capacitor')")
    with pytest.raises(ServerError, match="ended with code 1(.|\n)*no such flux capacitor"):
        with serve(stand_in, pack=stand_in / "pack"):
            pass


def test_server_that_never_answers_is_given_up(stand_in: Path) -> None:
    (stand_in / "main.py").write_text("print('thinking', flush=True)\nimport time\ntime.sleep(600)")
    with pytest.raises(ServerError, match="did not answer in 5 s(.|\n)*thinking"):
        with serve(stand_in, pack=stand_in / "pack", timeout=5):
            pass


def test_pack_loads_without_a_warning(client: Client, server: Server) -> None:
    known = client.get("/object_info")
    ours = {name for name, info in known.items() if info["python_module"].endswith("Imagic")}
    assert ours >= {
        "ImagicOptimizeEmbedding",
        "ImagicFinetuneModel",
        "ImagicInterpolateConditioning",
    }
    whole = server.log.read_text(encoding="utf-8", errors="replace")
    # What comes after it is of the prompts of other tests.
    log, served, _ = whole.partition("To see the GUI")
    assert served
    assert "custom_nodes/ComfyUI-Imagic" in log.replace("\\", "/"), "the log tells what was loaded"
    told = [line for line in log.splitlines() if "imagic" in line.lower()]
    assert not [line for line in told if re.search("warn|error|fail", line, re.IGNORECASE)]
    assert "IMPORT FAILED" not in log


def test_picture_goes_through_and_the_cache_serves_it_again(client: Client, tmp_path: Path) -> None:
    original = picture()
    original.save(tmp_path / "gradient.png")
    prompt = inversion(client.upload(tmp_path / "gradient.png"))

    first = client.run(prompt)
    (result,) = client.images(first, "3")
    assert result.size == original.size
    # ComfyUI cuts off where it could round, when it makes bytes of floats.
    sums = [a + b for a, b in zip(result.tobytes(), original.tobytes(), strict=True)]
    assert set(sums) <= {254, 255}
    assert first.executed == ["1", "2", "3"] and not first.cached

    again = client.run(prompt)
    assert again.executed == [] and set(again.cached) >= {"1", "2"}


def test_wrong_prompt_is_rejected_with_the_reason(client: Client) -> None:
    prompt = inversion("no-such-picture.png")
    with pytest.raises(PromptRejected, match="no-such-picture.png"):
        client.run(prompt)


def test_progress_previews_and_interrupt(client: Client, narrow_checkpoint: Path) -> None:
    def text(words: str) -> dict[str, object]:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": words}}

    size = {"width": 64, "height": 64, "batch_size": 1}
    prompt = {
        "1": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": narrow_checkpoint.name},
        },
        "2": text("a dog"),
        "3": text(""),
        "4": {"class_type": "EmptyLatentImage", "inputs": size},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0],
                "latent_image": ["4", 0], "seed": 1, "steps": 4000, "cfg": 1.0,
                "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "t"}},
    }  # fmt: skip
    steps = []

    def stop_at_third(event: object) -> None:
        if event.type == "progress" and event.data["node"] == "5":
            steps.append(event.data["value"])
            if len(steps) == 3:
                client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(prompt, stop_at_third)
    assert steps[:3] == sorted(steps[:3]) and steps[-1] < 4000

    prompt["5"]["inputs"]["steps"] = 2
    result = client.run(prompt)
    (saved,) = client.images(result, "7")
    assert saved.size == (64, 64)
