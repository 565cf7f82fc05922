"""The shipped weights: only the living tensors, in half precision or 8 bits, in small parts."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).resolve().parent / "asset"
PART_BYTES = 14_000_000
HALF_PRECISION_LIMIT = 36_000_000
SCALE = ".row_scale"


def pack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Half precision, or 8 bits with one scale per output channel where that would be too big."""
    if 2 * sum(t.size for t in tensors.values()) <= HALF_PRECISION_LIMIT:
        return {name: t.astype(np.float16) for name, t in tensors.items()}
    packed = {}
    for name, t in tensors.items():
        if t.ndim < 2:
            packed[name] = t.astype(np.float16)
            continue
        scale = np.abs(t).reshape(len(t), -1).max(1) / 127
        scale = np.maximum(scale, 1e-12).astype(np.float32)
        column = scale.reshape(-1, *[1] * (t.ndim - 1))
        packed[name], packed[name + SCALE] = np.round(t / column).astype(np.int8), scale
    return packed


def unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 tensors from what `pack` made."""
    out = {}
    for name, t in packed.items():
        if name.endswith(SCALE):
            continue
        t = t.astype(np.float32)
        if name + SCALE in packed:
            t *= packed[name + SCALE].reshape(-1, *[1] * (t.ndim - 1))
        out[name] = t
    return out


def write(
    shape: object,
    unet: dict[str, np.ndarray],
    autoencoder: dict[str, np.ndarray],
    latent_std: float,
    folder: Path = FOLDER,
) -> None:
    """Replace the asset by these weights. The checkpoint's hash is added by `build.seal`.

    `shape` is the dataclass of living channels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part_*.safetensors"):
        old.unlink()
    tensors = pack({f"unet.{n}": t for n, t in unet.items()})
    tensors |= pack({f"autoencoder.{n}": t for n, t in autoencoder.items()})
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, t in tensors.items():
        if sum(x.nbytes for x in parts[-1].values()) + t.nbytes > PART_BYTES:
            parts.append({})
        parts[-1][name] = np.ascontiguousarray(t)
    for n, part in enumerate(parts):
        save_file(part, folder / f"part_{n}.safetensors")
    about = {"shape": vars(shape), "latent_std": latent_std}
    (folder / "asset.json").write_text(json.dumps(about, indent=1) + "\n")


def read(folder: Path = FOLDER) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What asset.json says, the UNet's living tensors and the autoencoder's, float32."""
    about = json.loads((folder / "asset.json").read_text())
    packed: dict[str, np.ndarray] = {}
    for part in sorted(folder.glob("part_*.safetensors")):
        packed |= load_file(part)
    tensors = unpack(packed)

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}

    return about, below("unet."), below("autoencoder.")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
