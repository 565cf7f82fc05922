"""A real ComfyUI server in a folder of its own, for tests and the demo; it always ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from machine.environment import REPOSITORY

PACK = "ComfyUI-Imagic"


class ServerError(Exception):
    """The server did not start, or ended; the message carries the end of its log."""


def link_folder(link: Path, target: Path) -> None:
    """Make ``link`` lead to the folder ``target``, as every user of the system is allowed to."""
    if os.name == "nt":
        subprocess.run(
            ["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True
        )
    else:
        link.symlink_to(target, target_is_directory=True)


def make_base(
    folder: Path,
    pack: Path,
    checkpoints: Iterable[Path] = (),
    models: Path | None = None,
    more_packs: Iterable[Path] = (),
) -> None:
    """Lay out a ComfyUI base directory with ``pack`` and ``more_packs`` as its custom nodes.

    Checkpoints, and the files in the folders of ``models``, are linked, or copied where the system
    has no links for files.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    link_folder(folder / "custom_nodes" / PACK, pack)
    for other in more_packs:
        link_folder(folder / "custom_nodes" / other.name, other)
    for checkpoint in checkpoints:
        put_file(checkpoint, folder / "models/checkpoints" / checkpoint.name)
    if models:
        for file in models.glob("*/*"):
            target = folder / "models" / file.relative_to(models)
            target.parent.mkdir(exist_ok=True)
            put_file(file, target)


def put_file(source: Path, target: Path) -> None:
    """Make ``source`` appear at ``target`` without a copy where that is possible."""
    source = source.absolute()
    for put in (os.symlink, os.link, shutil.copyfile):
        with contextlib.suppress(OSError):
            put(source, target)
            return
    raise FileNotFoundError(f"{source} can be neither linked nor copied to {target}")


def base_arguments(base: Path) -> list[str]:
    """Return ComfyUI's options that keep it within ``base``, its packs the only additions."""
    return [
        "--base-directory", str(base),
        "--user-directory", str(base / "user"),
        # Otherwise the one in ComfyUI's own folder, also with a base directory.
        "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}",
        "--disable-api-nodes",
        # An extra_model_paths.yaml of the user's may bring custom nodes back.
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes", *(pack.name for pack in (base / "custom_nodes").iterdir()),
    ]  # fmt: skip


class Server:
    """A running server; made by ``serve``."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, base: Path, log: Path) -> None:
        self.process = process
        self.url = url
        self.base = base
        self.log = log

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines that the server wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the server answers; raise ``ServerError`` if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(
                    f"the server ended with code {self.process.returncode}:\n{self.log_tail()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ServerError(f"the server did not answer in {timeout:.0f} s:\n{self.log_tail()}")


@contextlib.contextmanager
def serve(
    comfyui: Path,
    checkpoints: Iterable[Path] = (),
    *,
    pack: Path = REPOSITORY,
    models: Path | None = None,
    more_packs: Iterable[Path] = (),
    cpu: bool = True,
    options: Iterable[str] = (),
    timeout: float = 240,
) -> Iterator[Server]:
    """Start a server on a free loopback port; yield it when it answers; end it always.

    It runs in this process's own Python, which must be ComfyUI's.

    It reads and writes only a temporary base directory, removed afterwards, in which ``pack`` and
    ``more_packs`` are the only custom nodes, and ``checkpoints`` and what lies in the folders of
    ``models`` (``checkpoints``, ``vae`` and so on) the only models.

    Raises:
        ServerError: it ended before it answered, or ``timeout`` seconds passed.
    """
    base = Path(tempfile.mkdtemp(prefix="imagic-host-"))
    try:
        make_base(base, pack, checkpoints, models, more_packs)
        port = free_port()
        log = base / "server.log"
        command = [
            sys.executable, "-s", Path(__file__).parent / "host_main.py", comfyui,
            "--listen", "127.0.0.1", "--port", port, *base_arguments(base),
            *(["--cpu"] if cpu else []), *options,
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                env=_environ(), cwd=comfyui, start_new_session=True,
            )  # fmt: skip
        try:
            server = Server(process, f"http://127.0.0.1:{port}", base, log)
            server.wait_until_ready(timeout)
            yield server
        finally:
            _end(process)
    finally:
        remove_base(base)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environ() -> dict[str, str]:
    # Nothing that a test starts may ask the network for a model.
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        # The whole group, also when its leader is gone: a child may have outlived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def remove_base(base: Path) -> None:
    """Remove what ``make_base`` laid out, and all that came into it."""
    # First the links, so that no way of removing a folder can follow one into the repository.
    with contextlib.suppress(OSError):
        for link in (base / "custom_nodes").iterdir():
            link.rmdir() if os.name == "nt" else link.unlink()
    shutil.rmtree(base, ignore_errors=True)
