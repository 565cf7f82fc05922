"""What many edits in one ComfyUI leave behind: memory, and all that could pile up.

    python tests/benchmarks/endurance.py [--json OUT.json] [--edits N] [--steps N]

Each edit is a prompt of its own, run by ComfyUI's executor: both trainings, every second one with
all weights, and a picture sampled from them. Nothing of it is in the cache, and what is learned is
kept, as users have it. After each, what is there is counted. The model is untrained and of the
smallest size; memory is the process's own resident one.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import psutil
import torch
from host import given
from host.executor import Executor, node

MB = 2**20
FIRST = 5
"""Edits after which nothing is new to the process any more."""


def edits(model: Any, count: int, steps: int) -> Iterator[dict[str, int]]:
    """Run them one after another; yields what there is after each."""
    import nodes as host_nodes

    given_values = {"model": model, "text": given.conditioning(), "image": given.latent()}
    executor = Executor(host_nodes, given_values)
    try:
        for number in range(count):
            ended = executor.run(prompt(number, steps))
            assert ended == ("done", ""), ended
            yield there_is(model)
    finally:
        executor.close()


def prompt(number: int, steps: int) -> dict[str, Any]:
    """An edit, as no other before it."""
    common = {"model": ["model", 0], "image": ["image", 0], "steps": steps, "seed": number}
    method, rate = (("lora", 1e-3), ("full", 1e-5))[number % 2]
    text = {"positive": ["mix", 0], "negative": ["text", 0]}
    return {
        **{name: node("Given", name=name) for name in ("model", "text", "image")},
        "a": node(
            "ImagicOptimizeEmbedding", target=["text", 0], learning_rate=1e-2, batch_size=2,
            **common,
        ),
        "b": node(
            "ImagicFinetuneModel", optimized=["a", 0], learning_rate=rate, batch_size=2,
            method=method, **common,
        ),
        "mix": node(
            "ImagicInterpolateConditioning", target=["text", 0], optimized=["a", 0], eta=0.7
        ),
        "draw": node(
            "KSampler", model=["b", 0], latent_image=["image", 0], seed=number, steps=2, cfg=2.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, **text,
        ),
        "end": node("Taken", value=["draw", 0]),
    }  # fmt: skip


def there_is(model: Any) -> dict[str, int]:
    """What there is in this process, and at the model, by name."""
    import comfy.model_management
    import comfy.model_patcher

    gc.collect()
    process = psutil.Process()
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.model.modules())
    objects = gc.get_objects()
    return {
        "resident memory": process.memory_info().rss,
        "patchers": sum(type(o) is comfy.model_patcher.ModelPatcher for o in objects),
        "tensors": sum(type(o) is torch.Tensor for o in objects),
        "patches": sum(map(len, model.patches.values())),
        "wrappers": sum(len(ones) for kind in model.wrappers.values() for ones in kind.values()),
        "callbacks": sum(len(ones) for kind in model.callbacks.values() for ones in kind.values()),
        "injections and attachments": len(model.injections) + len(model.attachments),
        "hooks": sum(len(vars(m).get(table, ())) for m in modules for table in tables),
        "forwards": sum("forward" in vars(m) for m in modules),
        "weight functions": sum(
            len(getattr(m, f"{name}_function", ())) for m in modules for name in ("weight", "bias")
        ),
        "loaded models": len(comfy.model_management.current_loaded_models),
        "open files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        "threads": threading.active_count(),
    }


def grown(found: list[dict[str, int]]) -> dict[str, int]:
    """What has more at the end than after the edits that had nothing new; memory in bytes."""
    first, last = found[:FIRST], found[-1]
    return {
        name: last[name] - max(one[name] for one in first)
        for name in last
        if last[name] > max(one[name] for one in first)
    }


def main() -> None:
    """Run, print a line for each edit, and write the numbers."""
    from families.tiny import build_narrow
    from machine import imagic

    from benchmarks import command

    parser = command.parser(__doc__, "endurance")
    parser.add_argument("--edits", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="of each training; %(default)s")
    args = parser.parse_args()
    imagic.start(command.comfyui())
    folder = args.json.parent
    folder.mkdir(parents=True, exist_ok=True)
    model = given.load(build_narrow(folder / "endurance.safetensors", seed=0))
    found: list[dict[str, int]] = []
    for one in edits(model, args.edits, args.steps):
        found.append(one)
        others = {name: number for name, number in one.items() if name != "resident memory"}
        print(f"{len(found):3}  {one['resident memory'] / MB:8.1f} MB  {others}", flush=True)
    command.write(args.json, {"after each": found, "grown": grown(found)})
    print("grown:", grown(found))


if __name__ == "__main__":
    main()
