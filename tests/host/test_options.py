"""An edit in servers that are started as users start theirs: the same is learned by all of them.

The options that a GPU's memory is shared by, `--lowvram` and its kin, ComfyUI refuses without one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import faults

OPTIONS = {
    "lru": ["--cache-lru", "3"],
    "none": ["--cache-none"],
    "fast": ["--fast"],
    "static": ["--disable-dynamic-vram"],
}


def learned(
    comfyui: Path, checkpoint: Path, user: Path, options: list[str]
) -> dict[str, torch.Tensor]:
    """What a server learns, asked for twice: the second time, nothing is trained."""
    user.mkdir()
    with faults.Ground(comfyui, checkpoint, user, options) as ground:
        first, again = (ground.run(4, 3, keep=True) for _ in range(2))
    assert faults.same(again, first, exact=True)
    return first[1]


@pytest.fixture(scope="module")
def plain(
    comfyui_folder: Path, narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    return learned(comfyui_folder, narrow_checkpoint, tmp_path_factory.mktemp("plain") / "user", [])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_is_learned(
    comfyui_folder: Path,
    narrow_checkpoint: Path,
    tmp_path: Path,
    plain: dict[str, torch.Tensor],
    name: str,
) -> None:
    known = (comfyui_folder / "comfy" / "cli_args.py").read_text("utf-8")
    if f'"{OPTIONS[name][0]}"' not in known:
        pytest.skip(f"this ComfyUI has no {OPTIONS[name][0]}")
    found = learned(comfyui_folder, narrow_checkpoint, tmp_path / "user", OPTIONS[name])
    assert found.keys() == plain.keys()
    for key, tensor in plain.items():
        # Of what rounding leaves of a gradient of nothing, a step makes a whole one.
        apart = (found[key].float() - tensor.float()).norm()
        assert apart <= 0.02 * tensor.float().norm(), key
