"""A hash of all that a training's result depends on: what has the same has the same result."""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

import comfyui_version
import numpy as np
import torch
from comfy.cli_args import args
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .carried import PREFIX, carried
from .identity import model_kind
from .sockets import Model

WHOLE = 2**20
"""Bytes up to which every one of a tensor is hashed. Of a larger one the sum of all its words is,
which any change of a weight changes, and a sample, which tells their order."""

SAMPLE = 4096

PLAIN = (
    str, bytes, int, float, complex, bool, types.NoneType, types.EllipsisType, range, slice,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


class UntellableError(TypeError):
    """Something cannot be told from another one of its kind; the message says what."""


def fingerprint(model: Model, *values: Any) -> str:
    """Hash of MODEL as it is sampled, and of all tensors and other things in ``values``.

    It takes about a second for each 5 GB of weights.

    Raises:
        UntellableError: what another node has put around the model, or into the values, keeps
            what it does where nobody can look.
    """
    digest = _Digest()
    with torch.no_grad():
        digest.add(torch.__version__, getattr(comfyui_version, "__version__", None))
        digest.add(sorted(map(str, args.fast)) if isinstance(args.fast, set) else args.fast)
        try:
            digest.add(model, *values)
        except (RecursionError, ValueError) as error:  # the latter of a closure that is not made
            raise UntellableError(str(error)) from error
    return digest.hash.hexdigest()


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        # With the values, so that no other comes to have the same identity.
        self.seen: dict[int, tuple[int, Any]] = {}

    def add(self, *values: Any) -> None:
        for value in values:
            self._one(value)

    def _one(self, value: Any) -> None:
        if isinstance(value, PLAIN) and not isinstance(value, enum.Enum):
            self._say(type(value).__name__, repr(value))
            return
        known = self.seen.get(id(value))
        if known is not None:
            self._say("seen", known[0])
            return
        self.seen[id(value)] = (len(self.seen), value)
        self._say(*_named(type(value)))
        if isinstance(value, Model):
            self._model(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, Mapping):
            self._say(len(value))
            for key, one in list(value.items()):
                self.add(key, one)
        elif isinstance(value, list | tuple):
            self._say(len(value))
            self.add(*value)
        elif isinstance(value, set | frozenset):
            self._say(sorted(_alone(one) for one in value))
        elif isinstance(value, np.ndarray | np.generic):
            self._say(value.dtype, value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        else:
            self.add(*_parts(value))

    def _say(self, *words: Any) -> None:
        # Its length before each, so that no two rows of words read alike.
        for word in map(str, words):
            self.hash.update(f"{len(word)}:{word}".encode("utf-8", "surrogatepass"))

    def _tensor(self, tensor: Tensor) -> None:
        data = tensor.detach()
        self._say(data.dtype, tuple(data.shape), type(data.data).__qualname__)
        if is_traceable_wrapper_subclass(data):
            names, about = data.__tensor_flatten__()
            self.add(about, *(getattr(data, name) for name in names))
            return
        if data.is_nested or data.layout != torch.strided or data.device.type == "meta":
            raise UntellableError(f"a tensor of layout {data.layout} on {data.device.type}")
        if type(data) is not Tensor and vars(data):  # a quantised one of another pack's
            self.add(dict(vars(data)))
        plain = torch.empty(0, dtype=data.dtype, device=data.device)
        plain.set_(data.untyped_storage(), data.storage_offset(), data.size(), data.stride())
        bits = plain.contiguous().flatten().view(torch.uint8)
        if len(bits) > WHOLE:
            if bits.storage_offset() % 8:
                bits = bits.clone()
            words = bits[: len(bits) // 8 * 8].view(torch.int64)
            self._say(words.sum().item())
            some = words[:: len(words) // SAMPLE].contiguous()
            bits = torch.cat([some.view(torch.uint8), bits[-8:]])
        self.hash.update(bits.cpu().numpy().tobytes())

    def _model(self, patcher: Model) -> None:
        network = patcher.model.diffusion_model
        config = patcher.model.model_config
        self.add(model_kind(patcher), type(patcher.model), type(network), config.unet_config)
        self._say(patcher.load_device.type, patcher.force_cast_weights)
        for name, weight in [*network.named_parameters(), *network.named_buffers()]:
            # Where a patch is written over a weight, the host has kept it as it was.
            key = f"diffusion_model.{name}"
            before = patcher.hook_backup.get(key) or patcher.backup.get(key)
            self.add(name, weight if before is None else before[0])
        names = [name for name, _ in patcher.model.named_children() if name != "diffusion_model"]
        for name in ("latent_format", "manual_cast_dtype", *names):
            self.add(name, patcher.get_model_object(name))
        self.add(patcher.patches, patcher.object_patches, patcher.weight_wrapper_patches)
        self.add(patcher.model_options, patcher.hook_patches, patcher.additional_models)
        self.add(patcher.wrappers, patcher.callbacks)
        # Ours have names that are new each time.
        for ours in carried(patcher).values():
            self.add(ours.strength, ours.lora)
        self.add(_others(patcher.attachments), _others(patcher.injections))


def _alone(value: Any) -> str:
    digest = _Digest()
    digest.add(value)
    return digest.hash.hexdigest()


def _others(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in named.items() if not str(name).startswith(PREFIX)}


def _named(value: Any) -> tuple[str, str]:
    """Module and name of a class or function, wherever its pack lies: the host names it by path."""
    return re.split(r"[./\\]", str(value.__module__))[-1], value.__qualname__


def _parts(value: Any) -> Iterable[Any]:
    """What makes up a function or an object, beside its type."""
    match value:
        case type() | types.BuiltinFunctionType():
            return _named(value)
        case types.ModuleType():
            return (value.__name__.rpartition(".")[2],)
        case types.MethodType():
            return value.__func__, value.__self__
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            code, defaults = value.__code__, (value.__defaults__, value.__kwdefaults__)
            return *_named(value), code, *defaults, *cells
        case types.CodeType():
            return value.co_code, value.co_consts, value.co_names
        case functools.partial():
            return value.func, value.args, value.keywords
        case enum.Enum():
            return (value.name,)
    slots = [s for kind in type(value).__mro__ for s in getattr(kind, "__slots__", ())]
    own = [getattr(value, s, None) for s in slots if s not in ("__dict__", "__weakref__")]
    if not own and not hasattr(value, "__dict__"):
        raise UntellableError(f"a {type(value).__module__}.{type(value).__qualname__}")
    return vars(value) if hasattr(value, "__dict__") else {}, *own
