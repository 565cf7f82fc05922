"""A loaded model made ready for training, and all of it undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import compress
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...imagic_core.changes import Difference, LowRank
from ...imagic_core.edit import Sentence
from ...imagic_core.objective import Photographs
from .changes import applied
from .denoiser import HostDenoiser, to_device
from .kernels import differentiable_kernels, differentiable_options
from .probe import check_draws, check_sampled, check_trains, peak_of, watched
from .recompute import recomputed
from .sockets import Model


@contextmanager
def trainable(
    model: Model,
    photographs: Photographs,
    sentence: Sentence,
    changes: Mapping[str, Difference | LowRank] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
    recompute: bool = False,
    in_main_memory: bool = False,
) -> Iterator[tuple[HostDenoiser, Photographs]]:
    """Load the model for training; on exit, whatever happened, it is as it was.

    Args:
        model: MODEL; it is cloned.
        photographs: what is to be learned.
        sentence: the model is given its other entries.
        changes: state dict key of a weight -> its change.
        compute_dtype: number format to compute in; None is the model's own.
        recompute: pass each block once more in the backward pass instead of keeping it.
        in_main_memory: let weights lie there while they are not in use; only where blocks are
            recomputed does the backward pass not hold them either.

    Yields:
        The denoiser with the changes applied, and the photographs on the model's device.

    Raises:
        DoesNotFitError: the sentence, the photographs and the model do not belong together.
        BadInputError: the model cannot be trained.
    """
    patcher = trainable_clone(model)
    if compute_dtype is not None:
        patcher.set_model_compute_dtype(compute_dtype)
    with ExitStack() as undo:
        # Asking for more than there is makes room: the text encoder and the VAE are unloaded.
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=1e20, force_full_load=not in_main_memory
        )
        undo.callback(patcher.cleanup)
        patcher.pre_run()
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        # Some models seed PyTorch's global generator in their conditioning.
        undo.enter_context(torch.random.fork_rng(devices=[]))
        undo.enter_context(frozen_weights(patcher.model))
        photographs = photographs.to(patcher.load_device)
        dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
        denoiser = HostDenoiser(patcher, photographs.x0, sentence.options, dtype)
        first = photographs.x0[:1], to_device(sentence.embedding, patcher.load_device)
        with watched(patcher.model, changes or {}) as sampled:
            check_draws(denoiser, *first)
        undo.enter_context(differentiable_kernels())
        denoiser.transformer_options |= differentiable_options()
        if recompute:
            undo.enter_context(recomputed(patcher.model.diffusion_model))
        if changes:
            undo.enter_context(applied(patcher, changes))
        leaves = [p for change in (changes or {}).values() for p in change.parameters()]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        taken = peak_of(patcher.load_device)
        reached = check_trains(denoiser, *first, leaves)
        denoiser.draw_bytes = taken()
        check_sampled(denoiser, changes or {}, sampled, {id(p) for p in compress(leaves, reached)})
        yield denoiser, photographs


def trainable_clone(model: Model) -> Model:
    """A clone with its weights in ordinary memory: dynamic weights are views that may vanish."""
    is_dynamic = getattr(model, "is_dynamic", None)
    if is_dynamic is not None and is_dynamic():
        return model.clone(disable_dynamic=True)
    return model.clone()


@contextmanager
def frozen_weights(model: torch.nn.Module) -> Iterator[None]:
    """Let autograd read weights that another node made in inference mode, without a copy.

    Autograd refuses to keep inference tensors, and leaving the mode does not change those that
    exist. A new tensor on the same storage is an ordinary one.
    """
    originals: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    originals.append((table, name, tensor))
                    table[name] = _ordinary(tensor)
        yield
    finally:
        for table, name, tensor in originals:
            table[name] = tensor


def _ordinary(tensor: Tensor) -> Tensor:
    data = tensor.detach()
    if is_traceable_wrapper_subclass(data):
        # A quantised weight: the numbers that it is made of, each by itself.
        names, about = data.__tensor_flatten__()
        inner = {name: _ordinary(getattr(data, name)) for name in names}
        alias = type(data).__tensor_unflatten__(inner, about, data.size(), data.stride())
    else:
        alias = torch.empty(0, dtype=data.dtype, device=data.device)
        alias.set_(data.untyped_storage(), data.storage_offset(), data.size(), data.stride())
        # Another pack's, which knows more of the bytes; floats are what they say.
        if type(data) is not Tensor and not data.is_floating_point():
            alias = alias.as_subclass(type(data))
            vars(alias).update(vars(data))
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(alias, requires_grad=False)
    return alias
