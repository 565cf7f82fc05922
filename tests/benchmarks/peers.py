"""What a training step costs: ours beside the bare network and beside a diffusers-style loop.

    python3 tests/benchmarks/peers.py [--json OUT.json] [--rounds N] [--size N] [--full-size]

The same weights (the miniature's full layout, random), the same number format, one draw a step. The
floor is the bare network's forward and backward pass: by the embedding for stage A, by all weights
for stage B, with which `lora` is compared as well. The peer is diffusers' network, its scheduler
and PyTorch's Adam; for `full` the floor has that Adam, too. Rounds take turns; ratios are of
medians. Memory is how far the process grows while it trains, each in a process of its own, over the
loaded model.

`--full-size` measures memory on networks of the size of Stable Diffusion 1.5 at 512 px and of SDXL
at 1024 px with random weights in bfloat16, one step each, and the seconds of the former.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import torch
from families import diffusers_unet, quantised
from families.tiny import build_tiny
from machine import imagic

from benchmarks import command

METHODS = ("embedding", "full", "attention", "lora")
FULL = {"SD15": ("Stable Diffusion 1.5", 64), "SDXL": ("SDXL", 128)}
"""Networks of full size: the host's name -> ours, and their latent's size."""
STEPS = 3
"""Steps of a round; the first of ours is not counted, which loads and checks as well."""

Step = Callable[[], None]
started = cache(imagic.start)
"""The pack is loaded once, however many networks there are."""


def device() -> torch.device:
    """Where the host computes."""
    import comfy.model_management

    found: torch.device = comfy.model_management.get_torch_device()
    return found


def small(dtype: torch.dtype) -> Any:
    """MODEL of the miniature's layout with random weights."""
    import comfy.sd

    with tempfile.TemporaryDirectory() as folder:
        file = build_tiny(Path(folder) / "tiny.safetensors", seed=0)
        return comfy.sd.load_checkpoint_guess_config(
            str(file), output_vae=False, output_clip=False, model_options={"dtype": dtype}
        )[0]


def full(name: str) -> Any:
    """MODEL of one of ``FULL`` with random weights, made in place, without a file."""
    import comfy.model_patcher
    import comfy.supported_models

    from benchmarks import cost

    config = cost.unet(**getattr(cost, name))[1] | {"use_temporal_attention": False}
    kind = getattr(comfy.supported_models, name)(config)
    kind.set_inference_dtype(torch.bfloat16, None)
    network = kind.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.diffusion_model.parameters():
            scale = 0.02 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.normal_(generator=generator).mul_(scale)
    return comfy.model_patcher.ModelPatcher(network, device(), torch.device("cpu"))


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        network: `miniature`, or one of ``FULL``.
        size: of the latent, which is square.
        dtype: of the weights, and to compute in.
    """

    network: str = "miniature"
    size: int = 16
    dtype: str = "float32"


@dataclass(frozen=True)
class How:
    """How the training node is set."""

    rank: int = 16
    batch_size: int = 1
    save_memory: str = "off"


class Bench:
    """One network in the host's and in diffusers' form, and steps of each."""

    def __init__(self, setting: Setting) -> None:
        """Make it."""
        self.nodes = started(command.comfyui())
        self.device = device()
        dtype = getattr(torch, setting.dtype)
        self.model = small(dtype) if setting.network == "miniature" else full(setting.network)
        generator = torch.Generator().manual_seed(0)
        self.network = self.model.model.diffusion_model.to(self.device)
        self.like = torch.empty(0, dtype=dtype, device=self.device)
        config = self.model.model.model_config.unet_config
        self.text = torch.randn(1, 77, config["context_dim"], generator=generator)
        self.pooled = torch.randn(1, min(1280, config["context_dim"]), generator=generator)
        self.latent = torch.randn(1, 4, setting.size, setting.size, generator=generator)
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def floor(self, method: str) -> Step:
        """The bare network, forth and back."""
        x, t = self.latent.to(self.like), torch.tensor([500.0], device=self.device)
        text = self.text.clone().to(self.like).requires_grad_(method == "embedding")
        weights = [] if method == "embedding" else list(self.network.parameters())

        def step() -> None:
            for weight in weights:
                weight.requires_grad_(True)
            loss = self.network(x, t, text).square().mean()
            torch.autograd.grad(loss, [text, *weights] if method == "embedding" else weights)
            for weight in weights:
                weight.requires_grad_(False)

        return step

    def floor_with_adam(self) -> Step:
        """The bare network, forth and back by all its weights, and PyTorch's Adam."""
        x, t = self.latent.to(self.like), torch.tensor([500.0], device=self.device)
        network, text = copy.deepcopy(self.network), self.text.to(self.like)
        adam = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=1e-6)

        def step() -> None:
            network(x, t, text).square().mean().backward()
            adam.step()
            adam.zero_grad()

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

    def ours(self, method: str, how: How | None = None, steps: int = STEPS) -> list[float]:
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
        given = asdict(how or How())
        try:
            if method == "embedding":
                del given["rank"]
                self.nodes.optimize(self.model, text, image, steps + 1, 1e-3, 0, **given)
            else:
                args = (self.model, text, image, method, steps + 1, 1e-6, 0)
                self.nodes.finetune(*args, **given)
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
    runs["full floor with Adam"] = partial(bench.timed, bench.floor_with_adam())
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
    ratios["full_step_vs_floor_with_adam"] = median["full"] / median["full floor with Adam"]
    return ratios, median


def growth(bench: Bench, kind: str, method: str, how: How, steps: int) -> int:
    """Bytes by which the process, or the GPU's use, grows at most over the loaded model."""
    train = partial(bench.ours, method, how, steps)
    if kind == "peer":
        train = partial(bench.timed, bench.peer(method))
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


def memory(kind: str, method: str, setting: Setting, how: How | None = None, steps: int = STEPS
           ) -> dict[str, float]:  # fmt: skip
    """How far a process of its own grows: GB, and bytes for each parameter of the network."""
    asked = [kind, method, asdict(setting), asdict(how or How()), steps]
    found = subprocess.run(
        [sys.executable, __file__, "--memory-of", json.dumps(asked)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown, parameters = map(int, found.stdout.split()[-2:])
    return {
        "GB": round(grown / 1e9, 2),
        "by parameter": round(grown / parameters, 2),
        "parameters, 1e9": round(parameters / 1e9, 3),
    }


def growths(bench: Bench, setting: Setting) -> dict[str, dict[int, dict[str, float]]]:
    """Seconds and memory of `lora` as one thing grows; of resolution, what lies beside it, too."""

    def row(own: Bench, at: Setting, how: How) -> dict[str, float]:
        own.ours("lora", how)
        seconds = round(statistics.median(own.ours("lora", how)), 4)
        return {"seconds": seconds, **memory("ours", "lora", at, how)}

    resolution = {}
    for size in (setting.size, 2 * setting.size, 4 * setting.size):
        at = replace(setting, size=size)
        own, how = bench if at == setting else Bench(at), How()
        floor = statistics.median(own.timed(own.floor("full")))
        resolution[size] = {
            "floor's seconds": round(floor, 4),
            **row(own, at, how),
            **{f"seconds of sampling, {name}": value for name, value in sampling(own).items()},
        }
    return {
        "resolution": resolution,
        "batch": {n: row(bench, setting, How(batch_size=n)) for n in (1, 2, 4)},
        "rank": {n: row(bench, setting, How(rank=n)) for n in (4, 16, 64)},
    }


def sampling(bench: Bench) -> dict[str, float]:
    """Seconds of the network's pass with what `lora` learned beside the layers, and patched in."""
    text = [[bench.text, {"pooled_output": bench.pooled}]]
    image = {"samples": bench.latent / 0.18215}
    beside, _, _ = bench.nodes.finetune(bench.model, text, image, "lora", 1, 1e-3, 0)
    models = {"beside": beside, "patched": bench.nodes.host.carried.patched(beside)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(4):
        for name, model in models.items():
            begun = time.perf_counter()
            for _ in range(2):  # the first one loads
                begun = time.perf_counter()
                bench.nodes.call(
                    "KSampler", model, 0, 5, 1.0, "euler", "normal", text, text, image, 1.0
                )
            seconds[name] += [time.perf_counter() - begun] if turn else []
    return {name: round(statistics.median(found), 4) for name, found in seconds.items()}


def quantised_step(bench: Bench, setting: Setting) -> dict[str, float]:
    """Seconds of a step of `lora` on the same weights in bfloat16 and in scaled float8."""
    import comfy.sd

    weights = {key: weight.clone() for key, weight in bench.network.state_dict().items()}
    half = Bench(replace(setting, dtype="bfloat16"))
    packed = copy.copy(bench)
    packed.model = comfy.sd.load_diffusion_model_state_dict(
        quantised.quantised(weights, quantised.SCALED_FP8)
    )
    seconds: dict[str, list[float]] = {"bfloat16": [], "scaled float8": []}
    for turn in range(4):
        for name, own in zip(seconds, (half, packed), strict=True):
            found = own.ours("lora")
            seconds[name] += found if turn else []
    return {name: round(statistics.median(found), 4) for name, found in seconds.items()}


def full_size() -> dict[str, Any]:
    """Memory of each method on networks of full size; a draw a step."""
    found: dict[str, Any] = {}
    for network, (title, size) in FULL.items():
        setting = Setting(network, size, "bfloat16")
        found[title] = {}
        for method, saving in (("lora", "on"), ("lora", "off"), ("embedding", "off")):
            grown = memory("ours", method, setting, How(save_memory=saving), steps=1)
            name = method + (", blocks recomputed" if saving == "on" else "")
            weights = 2 * grown["parameters, 1e9"]
            found[title][name] = {**grown, "GB with the weights": round(grown["GB"] + weights, 2)}
            print(title, name, found[title][name], flush=True)
    found["seconds"] = full_size_seconds()
    return found


def full_size_seconds() -> dict[str, float]:
    """Of a step of the smaller network, and of sampling with it."""
    network, (title, size) = next(iter(FULL.items()))
    bench = Bench(Setting(network, size, "bfloat16"))
    runs: dict[str, Callable[[], list[float]]] = {
        "floor full": lambda: bench.timed(bench.floor("full")),
        "floor full with Adam": lambda: bench.timed(bench.floor_with_adam()),
        "embedding": lambda: bench.ours("embedding", steps=2),
        "lora": lambda: bench.ours("lora", steps=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(3):
        for name, run in runs.items():
            found = run()
            seconds[name] += found if turn else []
    median = {name: round(statistics.median(own), 2) for name, own in seconds.items()}
    median |= {f"sampling, {name}": value for name, value in sampling(bench).items()}
    print(title, median, flush=True)
    return median


def table(ratios: dict[str, float]) -> str:
    """The ratios as README has them."""
    lines = ["| method | time / floor | time / peer | memory / peer |", "| --- | --- | --- | --- |"]
    for method in METHODS:
        kinds = ("step_vs_floor", "step_vs_peer", "memory_vs_peer")
        cells = (str(ratios.get(f"{method}_{kind}", "")) for kind in kinds)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = command.parser(__doc__, "peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=16, help="of the latent; default: %(default)s")
    parser.add_argument("--full-size", action="store_true", help="networks of full size instead")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        kind, method, setting, how, steps = given.memory_of
        bench = Bench(Setting(**setting))
        print(growth(bench, kind, method, How(**how), steps), bench.parameters)
        return
    if given.full_size:
        found = full_size()
    else:
        setting = Setting(size=given.size)
        bench = Bench(setting)
        ratios, seconds = step_ratios(bench, given.rounds)
        grown = {"peer full": memory("peer", "full", setting)}
        grown |= {f"ours {method}": memory("ours", method, setting) for method in METHODS}
        for method in METHODS[1:]:
            of = (grown[name]["by parameter"] for name in (f"ours {method}", "peer full"))
            ratios[f"{method}_memory_vs_peer"] = next(of) / next(of)
        found = {
            "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "memory": grown,
            "growth of lora": growths(bench, setting),
            "seconds of a step of lora": quantised_step(bench, setting),
        }
    about = {"device": str(device()), "torch": torch.__version__}
    command.write(given.json, {**found, "about": about})
    print(json.dumps(found, indent=1))
    if "ratios" in found:
        print(table(found["ratios"]))


if __name__ == "__main__":
    main()
