"""What the host computes with while it trains: kernels that have a backward pass."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.cli_args
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

_SMOOTH = re.compile(r"rope|adaln|norm|na\d")
"""Kernels of ``comfy_kitchen`` that have a gradient; the others round numbers to few bits."""


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Choose kernels that a gradient passes, for as long as this lasts."""
    with ExitStack() as undo:
        # Newer hosts choose by this flag, but not everywhere.
        if hasattr(comfy.model_management, "in_training"):
            undo.enter_context(_replaced(comfy.model_management, "in_training", True))
        # It records the first pass and breaks on another.
        if hasattr(comfy.cli_args.args, "disable_comfy_compiler"):
            undo.enter_context(_replaced(comfy.cli_args.args, "disable_comfy_compiler", True))
        # Compiled blocks compute the same, but keep other tensors for the backward pass.
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for name, eager in kitchen():
            fast = getattr(torch.ops.comfy_kitchen, name)
            undo.enter_context(
                _replaced(torch.ops.comfy_kitchen, name, _with_gradient(fast, eager))
            )
        yield


def differentiable_options() -> dict[str, Any]:
    """The same, of what is chosen by ``transformer_options``."""
    return {
        "optimized_attention_override": _differentiable_attention,
        # Keeps the text's keys by the sentence, and not by the weights, which change here.
        "qwen_image21_cache": {"device": "off"},
    }


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def kitchen() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Kernels of ``comfy_kitchen`` that nobody has replaced, each with the same in PyTorch."""
    eager = sys.modules.get("comfy_kitchen.backends.eager")
    for name in getattr(eager, "__all__", ()):
        function = getattr(eager, name)
        operator: Any = getattr(torch.ops.comfy_kitchen, name, None)
        if hasattr(operator, "default") and _SMOOTH.search(name) and not name.endswith("_"):
            schema = [argument.name for argument in operator.default._schema.arguments]
            if schema == list(inspect.signature(function).parameters):
                yield name, function


def _with_gradient(fast: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        inputs = (*args, *kwargs.values())
        wanted = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        return (eager if wanted and torch.is_grad_enabled() else fast)(*args, **kwargs)

    return kernel


def _differentiable_attention(_func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    # Sage and other attention kernels that users choose for speed have no backward pass.
    return attention_pytorch(*args, **kwargs)
