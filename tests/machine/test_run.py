"""The command line of ``run.py``, and that the hooks format as it does."""

from __future__ import annotations

import re
import sys

import pytest
import run

from machine.environment import REPOSITORY, TESTS


@pytest.mark.parametrize(
    ("words", "only", "rest"),
    [
        ("", None, []),
        ("tests/core -k seed -x", None, ["tests/core", "-k", "seed", "-x"]),
        ("--only mypy", "mypy", []),
        ("tests/core --only pytest -q", "pytest", ["tests/core", "-q"]),
    ],
)
def test_what_is_not_ours_goes_to_pytest(
    monkeypatch: pytest.MonkeyPatch, words: str, only: str | None, rest: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    given, for_pytest = run.arguments()
    assert (given.only, for_pytest) == (only, rest)


@pytest.mark.parametrize("words", ["--only black", "--only ruff tests/core"])
def test_what_cannot_be_meant_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    with pytest.raises(SystemExit):
        run.arguments()
    assert words.split()[-1] in capsys.readouterr().err


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "tests/miniature/README.md"])
def test_commands_that_the_texts_name_are_there(file: str) -> None:
    named = re.findall(r"python3? (tests/[\w/.]+)", (REPOSITORY / file).read_text("utf-8"))
    assert named
    assert [command for command in named if not (REPOSITORY / command).exists()] == []


def test_hooks_have_the_ruff_of_the_tests() -> None:
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8")
    pinned = (TESTS / "requirements.txt").read_text("utf-8")
    assert re.findall(r"rev: v(\S+)", hooks) == re.findall(r"^ruff==(\S+)", pinned, re.M)
