"""Train the x4 upscaler of the miniature's world from nothing.

    python tests/miniature/upscaler/train.py --work DIR [--only STAGE ...]

Every stage writes into DIR and goes on from what it finds there, so an interrupted run is
continued by the same command. Stages are limited by steps, not by time: a run that shares its
machine ends where one alone on it does. Needs torch, numpy, pillow and safetensors; no ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from miniature import asset, train, world  # noqa: E402
from miniature.captions import OPEN_CLIP, TextStates  # noqa: E402
from miniature.train import Fitting, Run  # noqa: E402
from miniature.upscaler import checkpoint  # noqa: E402
from miniature.upscaler.autoencoder import Autoencoder  # noqa: E402
from miniature.upscaler.layout import LEVELS, Shape  # noqa: E402
from miniature.upscaler.network import Levels, Network  # noqa: E402

SEED = 20261126
CONFIG = {
    "pictures": 3072,
    "tuning_pictures": 64,
    "upscaler_ae": {
        "minutes": None,
        "steps": 2000,
        "batch": 8,
        "crop": 64,
        "whole_from": 0.7,
        "lr": 2e-3,
        "lr_rest": 2e-3,
        "latent_noise": 0.05,
        "report": 100,
    },
    "upscaler": {
        "minutes": None,
        "steps": 1800,
        "batch": 16,
        "crop": 16,
        "whole_from": 0.7,
        "lr": 2e-3,
        "lr_rest": 2e-3,
        "ema": 0.995,
        "report": 100,
        "empty_captions": 0.1,
        "place_left_out": 0.3,
        "shape": asdict(Shape()),
    },
}


def alphas() -> torch.Tensor:
    """The upscaler's signal fractions, of its latents and of the small picture."""
    return train.alphas(0.0001, 0.02)


def part(fitting: Fitting, whole: int) -> tuple[int, int]:
    """Size of the crops and how many of them, at the same cost; at the end whole pictures."""
    setting = fitting.setting
    if fitting.progress < setting["whole_from"]:
        return setting["crop"], setting["batch"]
    return whole, max(1, setting["batch"] * setting["crop"] ** 2 // whole**2)


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return train.to_tensor(images, torch.device("cpu")) * 2 - 1


def quality(shown: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean PSNR in dB of pictures in [-1, 1]."""
    return train.psnr(shown / 2 + 0.5, truth / 2 + 0.5).mean().item()


def train_autoencoder(run: Run) -> None:
    """Stage "upscaler_ae": the autoencoder on crops, then on whole pictures."""
    torch.manual_seed(SEED)
    model = Autoencoder().to(memory_format=torch.channels_last)
    outside = ("encoder.conv", "decoder.conv")
    fitting = Fitting(run, "upscaler_ae", model, outside)
    data, held = train.pictures(run, "train"), pixels(train.pictures(run, "tuning"))
    while fitting.progress < 1:
        rng = np.random.default_rng([SEED, 1, fitting.clock.step])
        crop, batch = part(fitting, world.SIZE)
        whole = crop == world.SIZE
        where = (
            [(int(i), 0, 0) for i in rng.integers(len(data), size=batch)]
            if whole
            else train.places(rng, batch, len(data), crop)
        )
        x = pixels(
            np.stack([data[i, 8 * r : 8 * r + crop, 8 * c : 8 * c + crop] for i, r, c in where])
        )
        z = model.encoder(x)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(fitting.clock.step))
        difference = (model.decoder(z + fitting.setting["latent_noise"] * noise) - x) / 2
        loss = difference.abs().mean() + 16 * difference.pow(2).mean()
        loss = loss + 0.01 * (z.mean().pow(2) + (z.var() - 1).pow(2))
        fitting.step(loss)
        if fitting.due():
            with torch.no_grad():
                z = model.encoder(held)
                figures = {
                    "tuning_psnr": round(quality(model.decoder(z), held), 3),
                    "latent_std": round(z.std().item(), 4),
                }
            run.log("upscaler_ae", **fitting.figures(), loss=round(loss.item(), 5), **figures)
            fitting.save(latent_std=z.std().item())


def coder(run: Run) -> tuple[Autoencoder, float]:
    """The trained autoencoder and the spread of its latents."""
    state = torch.load(run.work / "upscaler_ae.pt")
    model = Autoencoder().to(memory_format=torch.channels_last)
    model.load_state_dict(state["model"])
    return model.requires_grad_(False), state["latent_std"]


def encode_latents(run: Run) -> None:
    """Stage "latents": float16 [N, 4, 32, 32] of each split, of unit variance."""
    model, std = coder(run)
    for split in ("train", "tuning"):
        file = run.work / f"upscaler_latents_{split}.npy"
        if not file.exists():
            parts = np.array_split(train.pictures(run, split), 32)
            z = torch.cat([model.encoder(pixels(p)) / std for p in parts])
            np.save(file, z.numpy().astype(np.float16))


def latents(run: Run, split: str) -> torch.Tensor:
    """All latents of a split, float32 [N, 4, 32, 32]."""
    return torch.from_numpy(np.load(run.work / f"upscaler_latents_{split}.npy")).float()


def small(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures a quarter as wide, as the host's "area" makes them."""
    return F.avg_pool2d(pictures, 4)


def cut(of: torch.Tensor, places: list[list[int]], size: int) -> torch.Tensor:
    """Of each of [B, C, H, W] the square of this size at its row and column."""
    pairs = zip(of, places, strict=True)
    return torch.stack([x[:, r : r + size, c : c + size] for x, (r, c) in pairs])


def noisy(x: torch.Tensor, a: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What of [B, ...] is left at the signal fractions a [B]."""
    a = a[:, None, None, None]
    return a.sqrt() * x + (1 - a).sqrt() * noise


def v_loss(
    model: Network, z: torch.Tensor, beside: torch.Tensor, text: torch.Tensor, seed: int
) -> torch.Tensor:
    """Mean squared error of v; times stratified over the batch, low noise levels more often."""
    signal, n = alphas(), len(z)
    generator = torch.Generator().manual_seed(seed)
    t = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * 1000).long().clamp(max=999)
    level = (torch.rand(n, generator=generator).pow(2) * LEVELS).long().clamp(max=LEVELS - 1)
    noise = torch.randn(z.shape, generator=generator)
    beside = noisy(beside, signal[level], torch.randn(beside.shape, generator=generator))
    x = torch.cat([noisy(z, signal[t], noise), beside], 1)
    v = noisy(noise, signal[t], -z)
    x = x.contiguous(memory_format=torch.channels_last)
    return F.mse_loss(model(x, t, text, level), v)


def train_network(run: Run) -> None:
    """Stage "upscaler": the network and its average."""
    torch.manual_seed(SEED)
    setting = run.config["upscaler"]
    model = Network(Shape(**setting["shape"]))
    model.label_emb = Levels(setting["shape"]["time"])
    model = model.to(memory_format=torch.channels_last)
    fitting = Fitting(
        run,
        "upscaler",
        model,
        ("input_blocks.0", "out.", "time_embed.0", "label_emb"),
        {n: p.detach().clone() for n, p in model.named_parameters()},
    )
    data, z, read = train.pictures(run, "train"), latents(run, "train"), TextStates(OPEN_CLIP)
    held, (decode, std) = pixels(train.pictures(run, "tuning")), coder(run)
    shown = [train.example("train", i)[1] for i in range(len(data))]
    nothing = torch.from_numpy(read([""])).expand(len(held), -1, -1)
    held_z = latents(run, "tuning")

    def figures() -> dict[str, float]:
        own = {n: p.detach().clone() for n, p in model.named_parameters()}
        model.load_state_dict(fitting.average)
        with torch.no_grad():
            loss = v_loss(model, held_z, small(held), nothing, SEED).item()
            noise = torch.randn(held_z.shape, generator=torch.Generator().manual_seed(SEED))
            last = torch.full((len(held),), 999)
            v = model(torch.cat([noise, small(held)], 1), last, nothing, last * 0)
            at_once = quality(decode.decoder(-v * std), held)
        model.load_state_dict(own)
        return {"tuning_loss": round(loss, 5), "at_once_psnr": round(at_once, 3)}

    recent: list[float] = []
    while fitting.progress < 1:
        rng = np.random.default_rng([SEED, 2, fitting.clock.step])
        crop, batch = part(fitting, world.SIZE // 4)
        rows, last = rng.integers(len(data), size=batch), world.SIZE // 4 - crop + 1
        where = rng.integers(last, size=(batch, 2)).tolist()
        clean, beside = (cut(of, where, crop) for of in (z[rows], small(pixels(data[rows]))))
        text = torch.from_numpy(read(train.spoken([shown[i] for i in rows], rng, setting)))
        loss = v_loss(model, clean, beside, text, SEED + fitting.clock.step)
        fitting.step(loss)
        recent.append(loss.item())
        if fitting.due():
            mean = round(float(np.mean(recent)), 5)
            run.log("upscaler", **fitting.figures(), loss=mean, **figures())
            recent.clear()
            fitting.save()


def write_asset(run: Run) -> Path:
    """Write the averaged weights, as they are after training, into the run's asset folder."""
    model, std = coder(run)
    shape = Shape(**run.config["upscaler"]["shape"])
    average, levels = torch.load(run.work / "upscaler.pt")["average"], Levels(shape.time)
    for name, values in levels.named_parameters():
        values.data = average.pop(f"label_emb.{name}")
    average["label_emb.weight"] = levels.table().detach()
    own, coded = ({n: t.numpy() for n, t in of.items()} for of in (average, model.state_dict()))
    folder = run.out / "upscaler" / "asset"
    asset.write(shape, own, coded, std, folder)
    return folder


def export(run: Run) -> None:
    """Stage "export": write the asset, its hash, and the run's log and configuration."""
    run.log("export", sha256=checkpoint.seal(write_asset(run)))
    record = run.out / "run"
    record.mkdir(exist_ok=True)
    (record / "upscaler_config.json").write_text(json.dumps(run.config, indent=1) + "\n")
    (record / "upscaler_log.jsonl").write_text((run.work / "log.jsonl").read_text())


STAGES: dict[str, Callable[[Run], None]] = {
    "render": train.render,
    "upscaler_ae": train_autoencoder,
    "latents": encode_latents,
    "upscaler": train_network,
    "export": export,
}


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    run = Run(arguments.work, "cpu", CONFIG)
    for name in arguments.only:
        STAGES[name](run)


if __name__ == "__main__":
    main()
