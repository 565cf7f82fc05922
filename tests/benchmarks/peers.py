"""What a training step costs: ours beside the bare network and beside a diffusers-style loop.

    python3 tests/benchmarks/peers.py [--json OUT.json] [--rounds N] [--size N]

The same weights (the miniature's full layout, random), the same number format, one draw a step. The
floor is the bare network's forward and backward pass: by the embedding for stage A, by all weights
for stage B, with which `lora` is compared as well. The peer is diffusers' network, its scheduler
and PyTorch's Adam. Rounds take turns; ratios are of medians. Memory is how far the process grows
while it trains, each in a process of its own, over the loaded model.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import torch
from families import diffusers_unet
from families.tiny import build_tiny
from machine import imagic

from benchmarks import command

METHODS = ("embedding", "full", "attention", "lora")
STEPS = 3
"""Steps of a round; the first of ours is not counted, which loads and checks as well."""

Step = Callable[[], None]


class Bench:
    """One network in the host's and in diffusers' form, and steps of each."""

    def __init__(self, size: int) -> None:
        """Take latents of ``size`` x ``size``."""
        self.nodes = imagic.start(command.comfyui())
        import comfy.model_management
        import comfy.sd

        self.device = comfy.model_management.get_torch_device()
        with tempfile.TemporaryDirectory() as folder:
            file = build_tiny(Path(folder) / "tiny.safetensors", seed=0)
            self.model = comfy.sd.load_checkpoint_guess_config(
                str(file), output_vae=False, output_clip=False
            )[0]
        generator = torch.Generator().manual_seed(0)
        self.text = torch.randn(1, 77, 768, generator=generator)
        self.pooled = torch.randn(1, 768, generator=generator)
        self.latent = torch.randn(1, 4, size, size, generator=generator)
        self.network = self.model.model.diffusion_model.to(self.device)
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def floor(self, method: str) -> Step:
        """The bare network, forth and back."""
        x, t = self.latent.to(self.device), torch.tensor([500.0], device=self.device)
        text = self.text.clone().to(self.device).requires_grad_(method == "embedding")
        weights = [] if method == "embedding" else list(self.network.parameters())

        def step() -> None:
            for weight in weights:
                weight.requires_grad_(True)
            loss = self.network(x, t, text).square().mean()
            torch.autograd.grad(loss, [text, *weights] if method == "embedding" else weights)
            for weight in weights:
                weight.requires_grad_(False)

        return step

    def peer(self, method: str) -> Step:
        """Diffusers' network and scheduler, and PyTorch's Adam."""
        from diffusers import DDIMScheduler

        network = diffusers_unet.of(self.model)
        network.to(self.device).requires_grad_(method != "embedding")
        scheduler: Any = DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
        image = self.latent.to(self.device)
        text = self.text.clone().to(self.device).requires_grad_(method == "embedding")
        trained = [text] if method == "embedding" else list(network.parameters())
        adam = torch.optim.Adam(trained, lr=1e-6)

        def step() -> None:
            t = torch.randint(0, 1000, (1,), device=self.device)
            noise = torch.randn_like(image)
            found = network(scheduler.add_noise(image, noise, t), t, text).sample
            torch.nn.functional.mse_loss(found, noise).backward()
            adam.step()
            adam.zero_grad()

        return step

    def ours(self, method: str, rank: int = 16, batch_size: int = 1) -> list[float]:
        """Seconds of each step of a node, but for the first."""
        text = [[self.text, {"pooled_output": self.pooled}]]
        image = {"samples": self.latent / 0.18215}
        stamps: list[float] = []
        reporter = self.nodes.module.nodes.progress.Reporter
        report = reporter.__call__

        def stamped(own: Any, progress: Any) -> None:
            self.wait()
            stamps.append(time.perf_counter())
            report(own, progress)

        reporter.__call__ = stamped
        how: dict[str, Any] = {"batch_size": batch_size, "save_memory": "off"}
        try:
            if method == "embedding":
                self.nodes.optimize(self.model, text, image, STEPS + 1, 1e-3, 0, **how)
            else:
                args = (self.model, text, image, method, STEPS + 1, 1e-6, 0)
                self.nodes.finetune(*args, **how, rank=rank)
        finally:
            reporter.__call__ = report
        return [b - a for a, b in zip(stamps, stamps[1:], strict=False)]

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Step) -> list[float]:
        """Seconds of each of a round's steps."""
        seconds = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return seconds


def step_ratios(bench: Bench, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios of a step's time, and the medians in seconds."""
    runs: dict[str, Callable[[], list[float]]] = {}
    for base in ("embedding", "full"):
        runs[f"{base} floor"] = partial(bench.timed, bench.floor(base))
        runs[f"{base} peer"] = partial(bench.timed, bench.peer(base))
    for method in METHODS:
        runs[method] = partial(bench.ours, method)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            found = run()
            seconds[name] += found if turn else []  # the first round warms up
    median = {name: statistics.median(found) for name, found in seconds.items()}
    ratios = {}
    for method in METHODS:
        base = "embedding" if method == "embedding" else "full"
        for beside in ("floor", "peer"):
            ratios[f"{method}_step_vs_{beside}"] = median[method] / median[f"{base} {beside}"]
    return ratios, median


def growth(bench: Bench, name: str) -> int:
    """Bytes by which the process, or the GPU's use, grows at most over the loaded model."""
    kind, _, method = name.partition(" ")
    train = partial(bench.timed, bench.peer(method)) if kind == "peer" else None
    train = train or partial(bench.ours, method)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    train()
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def memory_ratios(size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios of growth, and bytes for each parameter of the network."""
    by_parameter = {}
    for name in ("peer full", *(f"ours {method}" for method in METHODS)):
        arguments = ["--memory-of", name, "--size", str(size)]
        found = subprocess.run(
            [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
        )
        by_parameter[name] = float(found.stdout.split()[-1])
    peer = by_parameter["peer full"]
    ratios = {f"{m}_memory_vs_peer": by_parameter[f"ours {m}"] / peer for m in METHODS[1:]}
    return ratios, by_parameter


def main() -> None:
    """Measure, print, write."""
    parser = command.parser(__doc__, "peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=16, help="of the latent; default: %(default)s")
    parser.add_argument("--memory-of", help="print the growth of one alone, bytes by parameter")
    given = parser.parse_args()
    bench = Bench(given.size)
    if given.memory_of:
        print(growth(bench, given.memory_of) / bench.parameters)
        return
    steps, seconds = step_ratios(bench, given.rounds)
    memory, by_parameter = memory_ratios(given.size)
    found = {
        "ratios": {name: round(ratio, 3) for name, ratio in (steps | memory).items()},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "bytes by parameter": {name: round(value, 2) for name, value in by_parameter.items()},
        "growth": {
            "batch": {n: statistics.median(bench.ours("lora", batch_size=n)) for n in (1, 2, 4)},
            "rank": {n: statistics.median(bench.ours("lora", rank=n)) for n in (4, 16, 64)},
        },
        "about": {"latent": given.size, "device": str(bench.device), "torch": torch.__version__},
    }
    command.write(given.json, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
