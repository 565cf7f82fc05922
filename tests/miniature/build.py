"""Expand the miniature's asset into an ordinary Stable Diffusion 1.x checkpoint.

    python tests/miniature/build.py --out miniature.safetensors

Needs numpy and safetensors only. The result is checked against the hash in asset/asset.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniature import asset, captions, layout  # noqa: E402


def checkpoint(
    shape: layout.Shape,
    unet: dict[str, np.ndarray],
    autoencoder: dict[str, np.ndarray],
    latent_std: float,
) -> dict[str, np.ndarray]:
    """All tensors of the checkpoint, half precision but for the autoencoder's two scalars."""
    parts = (
        ("model.diffusion_model.", layout.sd_tensors(shape, unet)),
        ("cond_stage_model.transformer.text_model.", captions.clip_tensors()),
        ("first_stage_model.", layout.taesd_tensors(autoencoder, latent_std)),
    )
    return {
        prefix + name: np.ascontiguousarray(t if t.ndim == 0 else t.astype(np.float16))
        for prefix, tensors in parts
        for name, t in tensors.items()
    }


def expand(out: Path, folder: Path = asset.FOLDER) -> dict:
    """Write the checkpoint without checking it; returns what asset.json says."""
    about, unet, autoencoder = asset.read(folder)
    shape = layout.Shape(**about["shape"])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint(shape, unet, autoencoder, about["latent_std"]), out)
    return about


def build(out: Path, folder: Path = asset.FOLDER) -> Path:
    """Write the checkpoint to `out` and return it.

    A file that is already there with the right hash is kept. Raises ValueError, with both
    hashes, when the result is not the one that was released; nothing is left behind then.
    """
    wanted = json.loads((folder / "asset.json").read_text())["sha256"]
    if out.exists() and asset.digest(out) == wanted:
        return out
    partial = out.with_name(out.name + ".part")
    expand(partial, folder)
    found = asset.digest(partial)
    if found != wanted:
        partial.unlink()
        raise ValueError(f"the built checkpoint has sha256 {found}, the released one {wanted}")
    return partial.replace(out)


def seal(folder: Path = asset.FOLDER) -> str:
    """Write the hash of what the asset now expands to into asset.json, and return it."""
    scratch = folder / "sealing.part"
    about = expand(scratch, folder)
    about["sha256"] = asset.digest(scratch)
    scratch.unlink()
    (folder / "asset.json").write_text(json.dumps(about, indent=1) + "\n")
    return about["sha256"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    print(build(parser.parse_args().out))


if __name__ == "__main__":
    main()
