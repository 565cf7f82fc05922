"""What a training leaves of the host, however it ends: all that is there is as it was."""

from __future__ import annotations

import gc
import hashlib
import importlib
import random
import threading
import types
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from machine import imagic

from host import given

STAGES = ("A", "lora", "full")
ENDS = ("done", "cancelled", "raised", "out of memory")


class _Stop(Exception):
    """Stands for whatever may go wrong in the middle of a training."""


@pytest.fixture(scope="module")
def used(nodes, model):
    """The model after the host has sampled it: what the host sets once is set."""
    nodes.sampled_loss(model, given.conditioning(), given.latent(), 1)
    return model


@pytest.mark.parametrize("save_memory", ["off", "on"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", ENDS)
def test_the_host_is_as_before_after_every_ending(
    nodes, used, stage, end, save_memory, monkeypatch
):
    target, latent = given.conditioning(), given.latent()
    inputs = deepcopy((target, latent))
    before = everything(used)
    steps = end_in_the_middle(nodes, end, monkeypatch)

    def train() -> None:
        if stage == "A":
            nodes.optimize(used, target, latent, 2, 1e-2, 0, save_memory=save_memory)
        else:
            nodes.finetune(used, target, latent, stage, 2, 1e-4, 0, save_memory=save_memory)

    assert ended(train) == (None if end == "done" else expected(end))
    assert steps == ([1, 2] if end == "done" else [1])
    monkeypatch.undo()
    given.assert_same((target, latent), inputs)
    after = everything(used)
    # Elsewhere a module that is imported late adds names of its own.
    new = {name for name in after if name.startswith(("patcher.", "model.", "module ", "weight "))}
    changed = [name for name in before.keys() | new if before.get(name) != after.get(name)]
    assert not changed, [(name, before.get(name), after.get(name)) for name in changed[:10]]


def end_in_the_middle(nodes: imagic.Pack, end: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the training end so after its first step; the list is of the steps that there were."""
    import comfy.model_management

    steps: list[int] = []
    reporter, denoiser = nodes.module.nodes.progress.Reporter, nodes.host.HostDenoiser
    report, predict = reporter.__call__, denoiser.predict

    def on_step(self: Any, progress: Any) -> None:
        steps.append(progress.step)
        if end == "raised":
            raise _Stop
        if end == "cancelled":
            comfy.model_management.interrupt_current_processing()
        report(self, progress)

    def within_the_second_step(self: Any, *args: Any) -> torch.Tensor:
        estimate = predict(self, *args)
        if end == "out of memory" and steps:
            raise torch.OutOfMemoryError("too little")
        return estimate

    monkeypatch.setattr(reporter, "__call__", on_step)
    monkeypatch.setattr(denoiser, "predict", within_the_second_step)
    return steps


def expected(end: str) -> str:
    names = {"cancelled": "InterruptProcessingException", "raised": "_Stop"}
    return names.get(end, "OutOfMemoryError")


def ended(train: Callable[[], None]) -> str | None:
    """The name of what it raised; the exception itself would keep alive what it passed."""
    try:
        train()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return type(error).__name__
    return None


# ---- all that there is ----------------------------------------------------------------------


def everything(model: Any) -> dict[str, Any]:
    """Name -> value, of all that a training could leave changed."""
    import comfy.cli_args
    import comfy.model_management
    import comfy.model_patcher

    gc.collect()
    loaded = comfy.model_management.current_loaded_models
    patchers = [o for o in gc.get_objects() if type(o) is comfy.model_patcher.ModelPatcher]
    state: dict[str, Any] = {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(np.random.get_state()),
        "python generator": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads of torch": torch.get_num_threads(),
        "threads": threading.active_count(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "loaded models": [(id(one.real_model()), one.currently_used) for one in loaded],
        "patchers alive": len(patchers),
        "command line": repr(sorted(vars(comfy.cli_args.args).items())),
    }
    for module in (torch, torch.nn.functional, torch.utils.checkpoint):
        for name, value in vars(module).items():
            state[f"{module.__name__}.{name}"] = id(value)
    for name, value in conftest.host_state().items():
        state[name] = value if isinstance(value, bool | int | float | str) else id(value)
    state |= {f"patcher.{name}": frozen(value) for name, value in vars(model).items()}
    state |= {f"model.{k}": frozen(v) for k, v in vars(model.model).items() if k[0] != "_"}
    for name, module in model.model.named_modules():
        for key, value in vars(module).items():
            state[f"module {name}.{key}"] = frozen(value)
    for name, tensor in model.model.state_dict(keep_vars=True).items():
        state[f"weight {name}"] = (
            id(tensor), tensor.requires_grad, tensor.grad is None, tensor.data_ptr(),
            checksum(tensor),
        )  # fmt: skip
    return state


def frozen(value: Any) -> Any:
    """Something that compares: containers by what they hold, objects by which they are."""
    if isinstance(value, dict):
        return {repr(key): frozen(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [type(value).__name__, *map(frozen, value)]
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return value
    if isinstance(value, types.MethodType):
        return (id(value.__self__), id(value.__func__))
    return id(value)


def checksum(tensor: torch.Tensor) -> str:
    bits = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(bits, digest_size=8).hexdigest()


def test_a_weight_that_was_moved_itself_is_put_back(nodes, model):
    """Before anything else of a training is undone, and however it ends."""
    inside = importlib.import_module(f"{nodes.host.trainable.__module__.rsplit('.', 1)[0]}.changes")
    changes = nodes.host.new_changes(model, "attention", 4, 0)
    key = next(key for key in changes if key.endswith(".weight"))
    layer = model.model.get_submodule(key.removesuffix(".weight"))
    before = [layer.weight, layer.weight.detach().clone()]
    with pytest.raises(_Stop), inside.applied(model, changes):
        assert layer.weight is changes[key].moved
        assert torch.equal(layer.weight, before[1])
        raise _Stop
    assert layer.weight is before[0] and torch.equal(layer.weight, before[1])
    assert not changes[key].difference.any()
