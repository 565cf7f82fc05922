"""Train the miniature from nothing, or on from its own shipped weights.

    python tests/miniature/train.py --work DIR [--device cuda] [--minutes N | --steps N]
                                    [--init FILE] [--only STAGE ...]

Every stage writes into DIR and goes on from what it finds there, so an interrupted run is
continued by the same command. Needs torch, numpy, pillow and safetensors; no ComfyUI.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from miniature import asset, build, layout, reader, world  # noqa: E402
from miniature.autoencoder import Autoencoder  # noqa: E402
from miniature.captions import TextStates, caption  # noqa: E402
from miniature.muon import Muon  # noqa: E402
from miniature.unet import UNet  # noqa: E402

HERE = Path(__file__).resolve().parent
SEED = 20240807
CHUNK = 1024
CONFIG = {
    "pictures": 8192,
    "tuning_pictures": 512,
    "ae": {
        "minutes": 62.0,
        "batch": 8,
        "crop": 64,
        "lr": 1e-3,
        "lr_rest": 1e-3,
        "latent_noise": 0.05,
        "decoder_alone_from": 0.9,
    },
    "reader": {"minutes": 22.0, "coded": 4096, "batch": 32, "lr": 1e-3, "lr_rest": 1e-3},
    "unet": {
        "minutes": 88.0,
        "batch": 16,
        "lr": 2e-3,
        "lr_rest": 1e-3,
        "ema": 0.998,
        "report": 100,
        "empty_captions": 0.1,
        "place_left_out": 0.3,
        "shape": vars(layout.Shape()),
    },
}


# What a GPU can afford: every channel alive, more pictures, larger batches.
CUDA_CONFIG = {
    "pictures": 32768,
    "ae": {"minutes": 10.0, "batch": 48},
    "reader": {"minutes": 2.0, "batch": 64},
    "unet": {
        "minutes": 15.0,
        "batch": 128,
        "lr": 1e-3,
        "ema": 0.9995,
        "report": 500,
        "shape": vars(layout.full_shape()),
    },
}


class Run:
    """Where a run keeps its files, how it logs, and where it computes."""

    def __init__(self, work: Path, device: str, config: dict, out: Path = HERE) -> None:
        """Create the folder; the log is appended to, one JSON object a line."""
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device, self.config, self.out = work, torch.device(device), config, out

    def log(self, stage: str, **figures: float | int | str) -> None:
        """Append to log.jsonl and print."""
        line = json.dumps({"stage": stage, **figures})
        print(line, flush=True)
        with (self.work / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def autocast(self) -> torch.autocast:
        """bf16 on CUDA; elsewhere off, since many CPUs have no bf16 units."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


class Clock:
    """Progress in [0, 1] by steps when they are limited, else by the time spent training."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        """Exactly one limit counts; steps win."""
        self.minutes, self.steps = minutes, steps
        self.step, self.seconds, self.last = 0, 0.0, time.monotonic()

    def tick(self) -> float:
        """Count one step and return the progress."""
        now = time.monotonic()
        self.step, self.seconds, self.last = self.step + 1, self.seconds + now - self.last, now
        return self.progress()

    def progress(self) -> float:
        """What part of the limit is done; a larger limit continues a finished stage."""
        return self.step / self.steps if self.steps else self.seconds / 60 / (self.minutes or 1)

    def state(self) -> tuple[int, float]:
        """What a checkpoint must keep."""
        return self.step, self.seconds

    def load(self, state: tuple[int, float]) -> None:
        """Go on from a checkpoint's count."""
        (self.step, self.seconds), self.last = state, time.monotonic()


def save(path: Path, state: dict) -> None:
    """Write a checkpoint so that a kill in the middle leaves the old one."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class Tools:
    """Muon for hidden matrices, AdamW for vectors and for what faces the outside."""

    def __init__(self, model: torch.nn.Module, outside: tuple[str, ...], setting: dict) -> None:
        """`outside` are the prefixes of names that AdamW takes."""
        hidden: list[torch.Tensor] = []
        rest: list[torch.Tensor] = []
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            (hidden if p.ndim >= 2 and not name.startswith(outside) else rest).append(p)
        self.parameters = [*hidden, *rest]
        self.rates = (setting["lr"], setting["lr_rest"])
        self.each: tuple[torch.optim.Optimizer, ...] = (
            Muon(hidden, self.rates[0]),
            torch.optim.AdamW(rest, self.rates[1], betas=(0.9, 0.99), weight_decay=0.0),
        )

    def step(self, loss: torch.Tensor, factor: float) -> None:
        """Backward, clip to norm 1, and step at `factor` of the full rates."""
        for tool in self.each:
            tool.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for tool, rate in zip(self.each, self.rates, strict=True):
            tool.param_groups[0]["lr"] = rate * factor
            tool.step()

    def state(self) -> list[dict]:
        """For a checkpoint."""
        return [tool.state_dict() for tool in self.each]

    def load(self, states: list[dict]) -> None:
        """From a checkpoint."""
        for tool, state in zip(self.each, states, strict=True):
            tool.load_state_dict(state)


class Fitting:
    """A network in training with its optimisers and its clock, kept in one file."""

    def __init__(
        self,
        run: Run,
        stage: str,
        model: torch.nn.Module,
        outside: tuple[str, ...],
        average: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Go on from the stage's file where there is one."""
        self.setting, self.path = run.config[stage], run.work / f"{stage}.pt"
        self.model, self.average = model, average or {}
        self.tools = Tools(model, outside, self.setting)
        self.clock = Clock(self.setting["minutes"], self.setting.get("steps"))
        self.progress = 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=run.device)
            model.load_state_dict(state["model"])
            self.average = state.get("average", {})
            self.tools.load(state["optimisers"])
            self.clock.load(state["clock"])
            self.progress = self.clock.progress()

    def step(self, loss: torch.Tensor) -> None:
        """One step of the optimisers, at the rate that the progress asks for."""
        self.tools.step(loss, decay(self.progress, self.clock.step, 50))
        if self.average:
            n = self.clock.step
            keep = min(self.setting["ema"], (1 + n) / (10 + n))
            torch._foreach_lerp_(
                list(self.average.values()), [p.detach() for p in self.model.parameters()], 1 - keep
            )
        self.progress = self.clock.tick()

    def due(self) -> bool:
        """Whether it is time to report and save: every so many steps, and at the end."""
        return self.clock.step % self.setting.get("report", 200) == 0 or self.progress >= 1

    def save(self, **more: object) -> None:
        """Write the file."""
        kept = {"average": self.average} if self.average else {}
        save(
            self.path,
            {
                "model": self.model.state_dict(),
                "optimisers": self.tools.state(),
                "clock": self.clock.state(),
                **kept,
                **more,
            },
        )

    def figures(self) -> dict[str, float]:
        """What every report begins with."""
        return {"step": self.clock.step, "minutes": round(self.clock.seconds / 60, 2)}


def example(split: str, index: int) -> tuple[world.Identity, world.Attributes]:
    """Identity and attributes of one picture of a split."""
    rng = np.random.default_rng([SEED, sorted(world.SPLITS).index(split), index])
    return world.identity(split, index), world.attributes(rng)


def rendered(split: str, start: int, stop: int) -> np.ndarray:
    """Pictures of a split, uint8 [stop - start, 128, 128, 3]."""
    return np.stack([world.render(*example(split, i)) for i in range(start, stop)])


def render(run: Run) -> None:
    """Pictures of the training and tuning splits: uint8 [CHUNK, 128, 128, 3] files."""
    jobs = []
    for split, count in (
        ("tuning", run.config["tuning_pictures"]),
        ("train", run.config["pictures"]),
    ):
        for start in range(0, count, CHUNK):
            path = run.work / f"{split}_{start // CHUNK:03d}.npy"
            if not path.exists():
                jobs.append((path, split, start, min(start + CHUNK, count)))
    # spawned: a fork of a process whose torch has threads may hang
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for path, pictures in zip(
            [j[0] for j in jobs],
            pool.map(rendered, *zip(*[j[1:] for j in jobs], strict=True)),
            strict=True,
        ):
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:
                np.save(file, pictures)
            partial.replace(path)


def pictures(run: Run, split: str) -> np.ndarray:
    """All rendered pictures of a split."""
    return np.concatenate([np.load(p) for p in sorted(run.work.glob(f"{split}_*.npy"))])


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [0, 1], channels last in memory."""
    x = torch.tensor(images).to(device).permute(0, 3, 1, 2).float().div_(255)
    return x.contiguous(memory_format=torch.channels_last)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio in dB per picture, for [B, ...] in [0, 1]."""
    return -10 * (a.clamp(0, 1) - b.clamp(0, 1)).pow(2).flatten(1).mean(1).log10()


def decay(progress: float, step: int, warmup: int) -> float:
    """Warm-up, then constant, then linear to zero over the last 60 %."""
    return min(1.0, (step + 1) / warmup) * min(1.0, max(0.0, 1 - progress) / 0.6)


def places(
    rng: np.random.Generator, count: int, pictures: int, crop: int
) -> list[tuple[int, int, int]]:
    """Picture, row and column of random crops, the last two in latent places of 8 pixels.

    The dog is below; the sky needs fewer looks.
    """
    last = (world.SIZE - crop) // 8
    low = rng.random(count) < 0.8
    rows = np.where(
        low, rng.integers(last // 3 + 1, last + 1, count), rng.integers(0, last // 3 + 1, count)
    )
    return list(
        zip(
            rng.integers(pictures, size=count).tolist(),
            rows.tolist(),
            rng.integers(0, last + 1, count).tolist(),
            strict=True,
        )
    )


def train_autoencoder(run: Run) -> None:
    """Stage "ae": the autoencoder on crops; ae.pt holds it and its optimiser."""
    torch.manual_seed(SEED)
    model = Autoencoder().to(run.device).to(memory_format=torch.channels_last)
    fitting = Fitting(run, "ae", model, ("encoder.0.change", "to_", "from_"))
    data, held = pictures(run, "train"), to_tensor(pictures(run, "tuning")[:64], run.device)
    setting = fitting.setting
    crop = setting["crop"]
    while fitting.progress < 1:
        rng = np.random.default_rng([SEED, 1, fitting.clock.step])
        x = to_tensor(
            np.stack(
                [
                    data[i, 8 * r : 8 * r + crop, 8 * c : 8 * c + crop]
                    for i, r, c in places(rng, setting["batch"], len(data), crop)
                ]
            ),
            run.device,
        )
        with run.autocast():
            # A decoder settles better on latents that no longer move.
            with torch.set_grad_enabled(fitting.progress < setting["decoder_alone_from"]):
                z = model.encode(x)
            noisy = z + setting["latent_noise"] * torch.randn_like(z)
            difference = (model.decode(noisy) - x).float()
            z = z.float()
            loss = difference.abs().mean() + 16 * difference.pow(2).mean()
            loss = loss + 0.01 * (z.mean().pow(2) + (z.var() - 1).pow(2))
        fitting.step(loss)
        if fitting.due():
            with torch.no_grad():
                z = model.encode(held)
                quality = psnr(model.decode(z), held).mean().item()
            run.log(
                "ae",
                **fitting.figures(),
                loss=round(loss.item(), 5),
                tuning_psnr=round(quality, 3),
                latent_std=round(z.std().item(), 4),
            )
            fitting.save(latent_std=z.std().item())


def encode_latents(run: Run) -> None:
    """Stage "latents": float16 [CHUNK, 4, 16, 16] beside each file of pictures, unit variance."""
    state = torch.load(run.work / "ae.pt", map_location=run.device)
    model = Autoencoder().to(run.device).to(memory_format=torch.channels_last)
    model.load_state_dict(state["model"])
    for path in sorted(run.work.glob("t*_[0-9]*.npy")):
        target = path.with_name("latents_" + path.name)
        if target.exists():
            continue
        with torch.no_grad(), run.autocast():
            z = torch.cat(
                [
                    model.encode(to_tensor(part, run.device)).float() / state["latent_std"]
                    for part in np.array_split(np.load(path), 16)
                ]
            )
        np.save(target, z.cpu().numpy().astype(np.float16))


def latents(run: Run, split: str) -> torch.Tensor:
    """All latents of a split, float32 [N, 4, 16, 16]."""
    files = sorted(run.work.glob(f"latents_{split}_*.npy"))
    return torch.from_numpy(np.concatenate([np.load(p) for p in files])).float()


def alphas(first: float = 0.00085, last: float = 0.012) -> torch.Tensor:
    """Cumulative signal fractions of 1000 steps, betas square-root-linear; by default SD1.x's."""
    return (
        (1 - torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64) ** 2)
        .cumprod(0)
        .float()
    )


def spoken(shown: list[world.Attributes], rng: np.random.Generator, setting: dict) -> list[str]:
    """Captions of pictures in random wordings; some empty, some without the place."""
    return [
        ""
        if rng.random() < setting["empty_captions"]
        else caption(what, rng, place=rng.random() >= setting["place_left_out"])
        for what in shown
    ]


class Texts:
    """Text states on the device; each of the few thousand wordings is computed once."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self.states, self.device = TextStates(), device
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """[B, 77, dimensions]."""
        for text in texts:
            if text not in self.known:
                self.known[text] = torch.from_numpy(self.states([text])[0]).to(self.device)
        return torch.stack([self.known[text] for text in texts])


def noise_loss(
    model: UNet,
    z: torch.Tensor,
    text: torch.Tensor,
    signal: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Min-SNR-5 weighted loss and plain eps-MSE, timesteps stratified over the batch."""
    n = len(z)
    t = (torch.arange(n) + torch.rand(n, generator=generator)) / n * 1000
    t = t.long().clamp(max=999).to(z.device)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    a = signal[t][:, None, None, None]
    prediction = model(
        (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last),
        t,
        text,
    )
    error = (prediction.float() - noise).pow(2).mean((1, 2, 3))
    snr = (a / (1 - a)).flatten()
    return (snr.clamp(max=5) / snr * error).mean(), error.mean()


def train_unet(run: Run) -> None:
    """Stage "unet": unet.pt holds the network, its average and the optimisers."""
    torch.manual_seed(SEED)
    model = UNet(layout.Shape(**run.config["unet"]["shape"]))
    model = model.to(run.device).to(memory_format=torch.channels_last)
    if run.config.get("init"):
        start_from(model, Path(run.config["init"]))
    fitting = Fitting(
        run,
        "unet",
        model,
        ("enter", "leave", "time1"),
        {n: p.detach().clone() for n, p in model.named_parameters()},
    )
    setting = fitting.setting
    data, tuning, signal = latents(run, "train"), latents(run, "tuning"), alphas().to(run.device)
    data, tuning, read = data.to(run.device), tuning[:128].to(run.device), Texts(run.device)
    shown = [example("train", i)[1] for i in range(len(data))]
    recent: list[float] = []

    def tuning_loss() -> tuple[float, float]:
        rng = np.random.default_rng(SEED)
        texts = spoken([example("tuning", i)[1] for i in range(len(tuning))], rng, setting)
        own = {n: p.detach().clone() for n, p in model.named_parameters()}
        model.load_state_dict(fitting.average)
        generator, sums = torch.Generator().manual_seed(SEED), []
        with torch.no_grad(), run.autocast():
            for part in torch.arange(len(tuning)).split(64):
                pair = noise_loss(
                    model, tuning[part], read([texts[i] for i in part]), signal, generator
                )
                sums.append([v.item() for v in pair])
        model.load_state_dict(own)
        return tuple(np.mean(sums, 0))

    while fitting.progress < 1:
        step = fitting.clock.step
        rng = np.random.default_rng([SEED, 2, step])
        generator = torch.Generator().manual_seed(SEED + step)
        rows = rng.integers(len(data), size=setting["batch"])
        with run.autocast():
            texts = spoken([shown[i] for i in rows], rng, setting)
            loss, _ = noise_loss(model, data[rows], read(texts), signal, generator)
        fitting.step(loss)
        recent.append(loss.item())
        if fitting.due():
            weighted, plain = tuning_loss()
            run.log(
                "unet",
                **fitting.figures(),
                loss=round(float(np.mean(recent)), 5),
                tuning_loss=round(weighted, 5),
                tuning_eps_mse=round(plain, 5),
            )
            recent.clear()
            fitting.save()


def start_from(model: UNet, checkpoint: Path) -> None:
    """Warm start from a built checkpoint; a wider network fills its new channels afresh.

    New channels read what was there before, and nothing that was there reads them yet.
    """
    prefix = "model.diffusion_model."
    known = {
        k[len(prefix) :]: t.astype(np.float32)
        for k, t in load_file(checkpoint).items()
        if k.startswith(prefix)
    }
    fresh = model.state_dict()
    for name, values in layout.own_tensors(model.shape, known).items():
        kept = torch.from_numpy(values).to(fresh[name])
        if kept.ndim > 1:
            alive = kept.flatten(1).abs().sum(1) > 0
            kept[~alive] = fresh[name][~alive]
        elif name.endswith("weight"):
            kept = torch.where(kept == 0, fresh[name], kept)
        fresh[name] = kept
    model.load_state_dict(fresh)


def decoded(run: Run, count: int) -> np.ndarray:
    """The first `count` training pictures as the autoencoder leaves them, uint8."""
    path = run.work / "coded.npy"
    if not path.exists():
        model = Autoencoder().to(run.device).to(memory_format=torch.channels_last)
        state = torch.load(run.work / "ae.pt", map_location=run.device)
        model.load_state_dict(state["model"])
        std = state["latent_std"]
        with torch.no_grad(), run.autocast():
            parts = [
                model.decode(z.to(run.device) * std).float().clamp(0, 1).cpu()
                for z in latents(run, "train")[:count].split(16)
            ]
        shown = (torch.cat(parts) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.save(path, shown)
    return np.load(path)


def train_reader(run: Run) -> None:
    """Stage "reader": the classifier that judges pictures; reader.pt."""
    torch.manual_seed(SEED)
    model = reader.Reader().to(run.device)
    fitting = Fitting(run, "reader", model, ("body.0.", "heads"))
    setting = fitting.setting
    data, tuning = pictures(run, "train"), pictures(run, "tuning")
    coded = decoded(run, setting["coded"])
    truths = [example("tuning", i) for i in range(len(tuning))]
    while fitting.progress < 1:
        rng = np.random.default_rng([SEED, 3, fitting.clock.step])
        # Half of the pictures come through the autoencoder, as all judged pictures do.
        through = rng.random(setting["batch"]) < 0.5
        rows = rng.integers(np.where(through, len(coded), len(data)))
        shown = np.stack([(coded if c else data)[i] for i, c in zip(rows, through, strict=True)])
        with run.autocast():
            loss = reader.loss(model, shown, [example("train", int(i)) for i in rows], rng)
        fitting.step(loss)
        if fitting.due():
            found = reader.read(model.cpu(), tuning)
            model.to(run.device)
            right = {
                name: round(
                    float(
                        np.mean(
                            [
                                getattr(f, name)
                                == getattr(who if hasattr(who, name) else what, name)
                                for f, (who, what) in zip(found, truths, strict=True)
                            ]
                        )
                    ),
                    4,
                )
                for name in reader.CLASSES
            }
            run.log("reader", **fitting.figures(), loss=round(loss.item(), 4), **right)
            fitting.save()


def export(run: Run) -> None:
    """Stage "export": write the asset, its hash, and the run's log and configuration."""
    ae = torch.load(run.work / "ae.pt", map_location="cpu")
    unet = torch.load(run.work / "unet.pt", map_location="cpu")
    folder, record = run.out / "asset", run.out / "run"
    asset.write(
        layout.Shape(**run.config["unet"]["shape"]),
        {n: t.numpy() for n, t in unet["average"].items()},
        {n: t.numpy() for n, t in ae["model"].items()},
        ae["latent_std"],
        folder,
    )
    model = reader.Reader()
    model.load_state_dict(torch.load(run.work / "reader.pt", map_location="cpu")["model"])
    reader.store(model, folder / reader.FILE.name)
    run.log("export", sha256=build.seal(folder))
    record.mkdir(exist_ok=True)
    (record / "config.json").write_text(json.dumps(run.config, indent=1) + "\n")
    (record / "log.jsonl").write_text((run.work / "log.jsonl").read_text())


STAGES: dict[str, Callable[[Run], None]] = {
    "render": render,
    "ae": train_autoencoder,
    "latents": encode_latents,
    "unet": train_unet,
    "reader": train_reader,
    "export": export,
}


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="how long the UNet trains")
    parser.add_argument("--steps", type=int, help="instead: how many steps the UNet trains")
    parser.add_argument("--init", type=Path, help="a built checkpoint whose UNet to start from")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    config = json.loads(json.dumps(CONFIG))
    if arguments.device == "cuda":
        for name, value in CUDA_CONFIG.items():
            config[name] = {**config[name], **value} if isinstance(value, dict) else value
    if arguments.minutes:
        config["unet"]["minutes"] = arguments.minutes
    config["unet"]["steps"] = arguments.steps
    config["init"] = str(arguments.init) if arguments.init else None
    run = Run(arguments.work, arguments.device, config)
    for name in arguments.only:
        STAGES[name](run)


if __name__ == "__main__":
    main()
