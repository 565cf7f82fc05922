"""The pack as ComfyUI's registry and manager take it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from machine.environment import MADE, REPOSITORY, python_in

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="session")
def comfy_cli() -> str:
    """The registry's own command, of this machine or as .ci/run makes it."""
    made = python_in(MADE / "comfy-cli").with_name("comfy.exe" if os.name == "nt" else "comfy")
    found = shutil.which("comfy") or (str(made) if made.is_file() else None)
    return found or pytest.skip("no comfy-cli: pip install comfy-cli")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A repository of what git knows here, as it lies on the disk."""
    folder = tmp_path / "pack"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = REPOSITORY / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def run(comfy_cli: str, folder: Path, command: str) -> str:
    """Run a command of the registry's on a folder, with a home of its own."""
    done = subprocess.run(
        [comfy_cli, "--skip-prompt", "--no-enable-telemetry", "node", command],
        cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=300,
        env=os.environ | {"HOME": str(folder.parent), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_registry_finds_nothing_wrong(comfy_cli: str, published: Path) -> None:
    said = run(comfy_cli, published, "validate")
    assert "All validation checks passed" in said and "arning" not in said


def test_the_registry_packs_what_the_pack_needs_and_no_more(
    comfy_cli: str, published: Path
) -> None:
    run(comfy_cli, published, "pack")
    with zipfile.ZipFile(published / "node.zip") as packed:
        names = set(packed.namelist())
        size = sum(one.compress_size for one in packed.infolist())
    needed = {
        file.relative_to(published).as_posix()
        for folder in ("nodes", "imagic_core", "web", "locales", "example_workflows", "subgraphs")
        for file in (published / folder).rglob("*")
        if file.is_file()
    }
    assert names >= needed | {"__init__.py", "pyproject.toml", "README.md", "LICENSE"}
    hidden = (".ci", ".github", "tests", "registry")
    assert [name for name in names if name.split("/")[0] in hidden] == []
    # Every user downloads it, and again with each new version.
    assert size < 5_000_000


@pytest.mark.parametrize(
    ("key", "largest", "proportion"), [("Icon", (800, 400), 1.0), ("Banner", (1680, 720), 21 / 9)]
)
def test_pictures_of_the_registry_are_ours_and_of_its_size(
    key: str, largest: tuple[int, int], proportion: float
) -> None:
    _, _, name = PROJECT["tool"]["comfy"][key].partition("/main/")
    with Image.open(REPOSITORY / name) as picture:
        assert picture.width <= largest[0] and picture.height <= largest[1]
        assert picture.width / picture.height == pytest.approx(proportion, rel=0.01)


def test_what_the_registry_shows_lies_where_the_project_says_that_it_lies() -> None:
    where = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    for key in ("Icon", "Banner"):
        assert PROJECT["tool"]["comfy"][key].startswith(
            f"https://raw.githubusercontent.com/{where}/main/"
        )


def test_a_newcomer_reads_the_readme_in_minutes() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    before, _, _ = readme.partition("## Development")
    text = re.sub(r"\]\([^)]*\)", "]", before)
    assert before != readme and len(re.findall(r"[^\W_][\w.,'’%-]*", text)) <= 1500
