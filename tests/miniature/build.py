"""Expand the miniature's asset into an ordinary Stable Diffusion 1.x checkpoint.

    python tests/miniature/build.py --out miniature.safetensors

Needs numpy and safetensors only. The result is checked against the hash in asset/asset.json.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniature import asset, captions, layout  # noqa: E402

Tensors = dict[str, np.ndarray]
# Of what asset.json says, the network's living tensors and the autoencoder's: the checkpoint.
Maker = Callable[[dict, Tensors, Tensors], Tensors]


def checkpoint(
    shape: layout.Shape,
    unet: Tensors,
    autoencoder: Tensors,
    latent_std: float,
) -> Tensors:
    """All tensors of the checkpoint, half precision but for the autoencoder's two scalars."""
    return joined(
        {
            "model.diffusion_model.": layout.sd_tensors(shape, unet),
            "cond_stage_model.transformer.text_model.": captions.clip_tensors(),
            "first_stage_model.": layout.taesd_tensors(autoencoder, latent_std),
        }
    )


def joined(parts: dict[str, Tensors]) -> Tensors:
    """One checkpoint of parts by their prefix, in half precision but for scalars."""
    return {
        prefix + name: np.ascontiguousarray(t if t.ndim == 0 else t.astype(np.float16))
        for prefix, tensors in parts.items()
        for name, t in tensors.items()
    }


def of_asset(about: dict, unet: Tensors, autoencoder: Tensors) -> Tensors:
    """The checkpoint that the miniature's asset expands to."""
    return checkpoint(layout.Shape(**about["shape"]), unet, autoencoder, about["latent_std"])


def expand(out: Path, folder: Path = asset.FOLDER, make: Maker = of_asset) -> dict:
    """Write the checkpoint without checking it; returns what asset.json says."""
    about, unet, autoencoder = asset.read(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(make(about, unet, autoencoder), out)
    return about


def build(out: Path, folder: Path = asset.FOLDER, make: Maker = of_asset) -> Path:
    """Write the checkpoint to `out` and return it.

    A file that is already there with the right hash is kept. Raises ValueError, with both
    hashes, when the result is not the one that was released; nothing is left behind then.
    """
    wanted = json.loads((folder / "asset.json").read_text())["sha256"]
    if out.exists() and asset.digest(out) == wanted:
        return out
    partial = out.with_name(out.name + ".part")
    expand(partial, folder, make)
    found = asset.digest(partial)
    if found != wanted:
        partial.unlink()
        raise ValueError(f"the built checkpoint has sha256 {found}, the released one {wanted}")
    return partial.replace(out)


def seal(folder: Path = asset.FOLDER, make: Maker = of_asset) -> str:
    """Write the hash of what the asset now expands to into asset.json, and return it."""
    scratch = folder / "sealing.part"
    about = expand(scratch, folder, make)
    about["sha256"] = asset.digest(scratch)
    scratch.unlink()
    (folder / "asset.json").write_text(json.dumps(about, indent=1) + "\n")
    return about["sha256"]


def command_line(about: str | None, make: Callable[[Path], Path]) -> None:
    """Command line of what writes a checkpoint; ``about`` is its docstring."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    print(make(parser.parse_args().out))


if __name__ == "__main__":
    command_line(__doc__, build)
