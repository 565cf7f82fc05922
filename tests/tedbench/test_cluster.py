"""The runner's workers as processes: killed, without a server, at a scheduler, stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest
from distributed import Client, Worker
from machine.environment import TESTS
from machine.host_process import free_port

from tedbench import cluster
from tedbench.cluster import Comfy, editors
from tedbench.protocol import METHODS
from tedbench.servers import Unusable
from tedbench.stand_in import Prompt, StandIn, described, kind, text, wait_until
from tedbench.trial import Trial

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills by POSIX signals")


def place(dask_worker: Worker) -> tuple[str, int]:
    """Which server a worker has, and its process."""
    return dask_worker.plugins["comfy"].server.url, os.getpid()


def processes(client: Client) -> dict[str, int]:
    """The worker's process of each server."""
    return dict(client.run(place, workers=editors(client)).values())


def test_of_a_killed_worker_nothing_is_lost_and_nothing_done_twice(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 5)
    killed: list[Prompt] = []

    def kills_in_the_middle(prompt: Prompt) -> None:
        if len(mortal.ran) == 4:
            killed.append(prompt)
            os.kill(of[mortal.url], signal.SIGKILL)

    mortal, other = start(trouble=kills_in_the_middle), start(seconds=0.1)
    with cluster.local([Comfy(mortal.url), Comfy(other.url)]) as client:
        of = processes(client)
        trial.run_on(client)
        wait_until(lambda: len(editors(client)) == 2)
        assert processes(client)[mortal.url] != of[mortal.url], "the engine did not bring it back"
    assert len(trial.done()) == 20 and trial.store.failures() == []
    assert set(trial.store.came.values()) == {1} and len(trial.store.came) == 20
    ran = Counter((text(p), kind(p)) for p in mortal.ran + other.ran)
    (dead,) = killed
    again = {("imagic", "imagic_without_b")} if "optimized" in dead else {(kind(dead),)}
    twice = {one for one, count in ran.items() if count > 1}
    assert twice <= {(text(dead), method) for methods in again for method in methods}
    assert max(ran.values()) == 2


def test_a_worker_without_its_server_gives_its_work_to_another(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 4)

    def dies(prompt: Prompt) -> None:
        if len(mortal.ran) == 2:
            raise SystemExit

    mortal, other = start(trouble=dies), start(seconds=0.02)
    with cluster.local([Comfy(mortal.url), Comfy(other.url)]) as client:
        trial.run_on(client)
    assert len(trial.done()) == 16 and set(trial.store.came.values()) == {1}
    assert len(mortal.ran) == 2


def test_a_job_that_ends_its_workers_ends_alone(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 3)

    def kills(prompt: Prompt) -> None:
        if kind(prompt) == "sdedit" and text(prompt).startswith("A photo of pet 1"):
            os.kill(processes(client)[server.url], signal.SIGKILL)

    server = start(trouble=kills)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster.local([Comfy(server.url)]) as client,
    ):
        trial.run_on(client)
    assert trial.store.failures() == [(trial.edits[1].name, "sdedit", "it ended 2 workers")]
    assert len(trial.done()) == 11 and set(trial.store.came.values()) == {1}


def test_without_a_worker_left_the_run_ends(tmp_path: Path, start, monkeypatch) -> None:
    def dies(_: Prompt) -> None:
        raise SystemExit

    quick = cluster.SETTINGS | {"distributed.scheduler.no-workers-timeout": "3s"}
    monkeypatch.setattr(cluster, "SETTINGS", quick)
    trial = Trial(tmp_path, 2)
    with (
        pytest.raises(Unusable, match="no worker is left"),
        cluster.local([Comfy(start(trouble=dies).url)]) as client,
    ):
        trial.run_on(client)
    assert trial.store.failures() == [] and trial.done() == set()


def test_a_server_that_cannot_take_part_is_named(start, monkeypatch) -> None:
    lacking = {name: about for name, about in described().items() if name != "FlipSigmas"}
    monkeypatch.setattr("tedbench.stand_in.described", lambda: lacking)
    for url, complaint in [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 does not answer as a ComfyUI"),
        (start().url, "lacks the nodes FlipSigmas"),
    ]:
        with pytest.raises(Unusable, match=complaint), cluster.local([Comfy(url)]):
            pass


# ---- the commands ---------------------------------------------------------------------------


def tool(*words: object) -> list[str]:
    return [sys.executable, str(TESTS / "tedbench"), *map(str, words)]


def words(folder: Path, *more: object, size: int = 64) -> list[str]:
    return tool(
        "run", folder / "tedbench", folder / "out", "--checkpoint", "tiny.safetensors",
        "--etas", "0", "1", "--strengths", "0.5", "--size", size, *more,
    )  # fmt: skip


def done(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_runs_resumes_and_refuses(trial: Trial, start, tmp_path: Path) -> None:
    server = start(trouble=lambda p: "no memory" if kind(p) == "ddib" else None)
    first = done(words(tmp_path, "--server", server.url))
    assert first.returncode == 1, first.stderr
    assert first.stderr.count("ddib: KSampler: no memory") == 2
    assert "run the same command again" in first.stderr
    assert "| imagic | eta 1.00 (shown to people) |" in first.stdout
    assert (tmp_path / "out" / "page" / "index.html").is_file()
    assert (tmp_path / "out" / "curves.png").is_file()
    server.trouble = lambda _: None
    server.ran.clear()
    again = done(words(tmp_path, "--server", server.url))
    assert again.returncode == 0, again.stderr
    assert [kind(prompt) for prompt in server.ran] == ["ddib", "ddib"]
    other = done(words(tmp_path, "--server", server.url, size=128))
    assert other.returncode == 2 and "size: 64 there, 128 now" in other.stderr
    assert len(server.ran) == 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_stopped_run_can_go_on(trial: Trial, start, tmp_path: Path, sent: int) -> None:
    server = start(seconds=1.0)
    run = subprocess.Popen(
        words(tmp_path, "--server", server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: len(server.ran) == 3)
    if sent == signal.SIGINT:
        os.killpg(run.pid, sent)  # as a terminal does
    else:
        run.send_signal(sent)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130 and "run the same command again to go on" in told, told
    assert "Traceback" not in told, told
    server.seconds = 0
    kept = {file.parent.name for file in (tmp_path / "out" / "records").glob("*/*.json")}
    assert kept == {trial.edits[0].name}
    if sent == signal.SIGINT:
        return  # what goes on is the same
    again = done(words(tmp_path, "--server", server.url))
    assert again.returncode == 0, again.stderr
    assert Counter(map(kind, server.ran))["imagic"] == 2


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a running one."""
    port = free_port()
    process = subprocess.Popen(
        tool("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"tcp://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_edits_go_to_the_workers_of_a_scheduler(
    trial: Trial, start, tmp_path: Path, scheduler: str
) -> None:
    servers = start(seconds=0.3), start(seconds=0.3)
    joined = subprocess.Popen(
        tool("worker", scheduler, "--server", *(server.url for server in servers)),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        finished = done(words(tmp_path, "--scheduler", scheduler))
        assert finished.returncode == 0, finished.stderr
        assert re.search(r"[12] workers; http", finished.stdout)
        assert sorted(map(kind, servers[0].ran + servers[1].ran)) == sorted([*METHODS] * 2)

        # A run that is stopped takes its work back from workers that go on.
        servers[0].ran.clear(), servers[1].ran.clear()
        for server in servers:
            server.seconds = 3.0
        (tmp_path / "out").rename(tmp_path / "first")
        run = subprocess.Popen(words(tmp_path, "--scheduler", scheduler))
        wait_until(lambda: all(server.queue for server in servers))
        run.terminate()
        assert run.wait(60) == 130
        wait_until(lambda: all(_interrupted(server) for server in servers), 20)
    finally:
        joined.terminate()
        _, told = joined.communicate(timeout=60)
    assert joined.returncode == 130 and "Traceback" not in told, told


def test_a_worker_without_a_scheduler_says_so(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    alone = done(tool("worker", "tcp://127.0.0.1:9", "--server", start().url))
    assert alone.returncode == 2 and "no work for tcp://127.0.0.1:9: " in alone.stderr


def _interrupted(server: StandIn) -> list[Any]:
    return [about for path, about in server.posted if path == "/interrupt"]


def test_what_a_worker_is_told_is_not_told_to_a_run(trial: Trial, tmp_path: Path) -> None:
    refused = done(words(tmp_path, "--scheduler", "tcp://127.0.0.1:9", "--server", "http://a"))
    assert refused.returncode == 2 and "it is the workers who are told" in refused.stderr
