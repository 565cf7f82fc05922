"""The only door to ComfyUI's insides: makes a ``Denoiser`` of a MODEL and undoes all it did.

Data goes one way: a node hands its sockets to this module, gets tensors and a ``Denoiser`` for
``imagic_core``, and hands the result back through this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.float
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.weight_adapter import adapter_maps
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..imagic_core.finetune import Difference, choose_changes
from ..imagic_core.objective import Embedding

string_to_seed = getattr(comfy.utils, "string_to_seed", None) or comfy.model_patcher.string_to_seed


# ---- what comes in over the sockets ---------------------------------------------------------

_ENTRY_KEYS_REFUSED = {
    "control": "disconnect the Apply ControlNet node",
    "area": "disconnect the Conditioning (Set Area) node",
    "mask": "disconnect the Conditioning (Set Mask) node; a mask on the image is honoured instead",
    "hooks": "disconnect the hook nodes (Cond Set Props, Create Hook ...)",
    "gligen": "disconnect the GLIGENTextBoxApply node",
    "start_percent": "disconnect the ConditioningSetTimestepRange node",
    "end_percent": "disconnect the ConditioningSetTimestepRange node",
    "clip_start_percent": "disconnect the prompt schedule",
}


@dataclass(frozen=True)
class Text:
    """One CONDITIONING of one sentence: its embedding, and all else that its dictionary holds."""

    embedding: Embedding
    options: dict[str, Any]

    def with_embedding(self, embedding: Embedding) -> list[list[Any]]:
        """A CONDITIONING of another embedding, everything else carried through."""
        options = dict(self.options)
        if embedding.pooled is not None:
            options["pooled_output"] = embedding.pooled
        return [[embedding.tokens, options]]


def read_text(node: str, socket: str, conditioning: Any) -> Text:
    """Read a CONDITIONING that must be one plain sentence.

    Raises:
        ValueError: it holds several entries, or something that cannot be optimised.
    """
    if not conditioning:
        raise ValueError(
            f"{node}: '{socket}' is empty; connect a CLIP Text Encode node with your sentence."
        )
    if len(conditioning) > 1:
        raise ValueError(
            f"{node}: '{socket}' combines {len(conditioning)} conditionings, but Imagic learns "
            "from one sentence; connect one CLIP Text Encode node without Conditioning (Combine)."
        )
    tokens, options = conditioning[0]
    for key, remedy in _ENTRY_KEYS_REFUSED.items():
        if options.get(key) is not None:
            raise ValueError(
                f"{node}: '{socket}' carries '{key}', which Imagic cannot learn through; {remedy}."
            )
    if tokens is None or not torch.isfinite(tokens).all():
        raise ValueError(
            f"{node}: '{socket}' has no finite text embedding (found "
            f"{'none' if tokens is None else 'NaN or infinity'}); connect a CLIP Text Encode node "
            "whose CLIP belongs to this model."
        )
    pooled = options.get("pooled_output")
    with torch.inference_mode(False):
        embedding = Embedding(tokens.clone(), None if pooled is None else pooled.clone())
    return Text(embedding, options)


def combine(
    node: str, target: Any, optimized: Any, rule: Callable[[Embedding, Embedding], Embedding]
) -> list[list[Any]]:
    """A CONDITIONING of the target's and the optimised embedding, all else as in the target.

    Raises:
        ValueError: either is not one plain sentence, or they do not match.
    """
    text = read_text(node, "target", target)
    learned = read_text(node, "optimized", optimized)
    try:
        return text.with_embedding(rule(text.embedding, learned.embedding))
    except ValueError as error:
        raise ValueError(
            f"{node}: 'target' and 'optimized' do not match: {error}. Connect to 'target' the "
            "very sentence that Imagic Optimize Embedding got."
        ) from error


def read_image(node: str, model: Any, latent: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Read a LATENT of photographs for ``model``.

    Returns:
        x0 [B, C, ...] scaled as the model wants it, and its mask [B, 1, ...] or None.

    Raises:
        ValueError: it is empty, does not fit the model, or its mask excludes everything.
    """
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(f"{node}: 'image' packs several streams; connect a VAE Encode node.")
    latent_format = model.get_model_object("latent_format")
    with torch.inference_mode(False):
        samples = samples.clone().float()
        if not torch.isfinite(samples).all():
            raise ValueError(
                f"{node}: 'image' contains NaN or infinity; encode it with a VAE in float32 "
                "(start ComfyUI with --fp32-vae)."
            )
        if samples.count_nonzero() == 0:
            raise ValueError(
                f"{node}: 'image' is an empty latent {tuple(samples.shape)}; connect your "
                "photograph: Load Image, then VAE Encode."
            )
        samples = comfy.sample.fix_empty_latent_channels(model, samples)
        if samples.shape[1] != latent_format.latent_channels:
            raise ValueError(
                f"{node}: 'image' has {samples.shape[1]} latent channels, but the model works on "
                f"{latent_format.latent_channels}; encode the photograph with the VAE that "
                "belongs to this model."
            )
        x0 = model.model.process_latent_in(samples)
        mask = latent.get("noise_mask")
        if mask is None:
            return x0, None
        mask = comfy.utils.reshape_mask(mask.clone().float(), x0.shape)[:, :1].clamp(0, 1)
    if not (mask.flatten(1).sum(1) > 0).all():
        raise ValueError(
            f"{node}: the mask of 'image' is empty, so there is nothing to be faithful to; paint "
            "the part to keep, or disconnect the mask."
        )
    return x0, mask


# ---- the model as a Denoiser ----------------------------------------------------------------


class HostDenoiser:
    """A loaded MODEL as ``imagic_core`` sees it. Made by ``training``."""

    def __init__(
        self, patcher: Any, x0: Tensor, options: dict[str, Any], compute_dtype: torch.dtype
    ) -> None:
        """Take the loaded patcher, the photographs and the conditioning's other entries."""
        self.model = patcher.model
        self.sampling = self.model.model_sampling
        self.sigmas = self.sampling.sigmas.detach().clone().float().to(x0.device)
        self.compute_dtype = compute_dtype
        self.options = _on_device(options, x0.device)
        self.latent_image = x0[:1]
        self.passes = 0
        self.transformer_options = {
            **patcher.model_options.get("transformer_options", {}),
            "cond_or_uncond": [0],
            "optimized_attention_override": _differentiable_attention,
        }

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        return self.sampling.noise_scaling(_over(sigma, x0), noise, x0, False)

    def predict(self, x_t: Tensor, sigma: Tensor, embedding: Embedding) -> Tensor:
        """See ``imagic_core.objective.Denoiser``."""
        self.passes += 1
        entry = [embedding.tokens, {**self.options, "pooled_output": embedding.pooled}]
        (cond,) = comfy.samplers.encode_model_conds(
            self.model.extra_conds,
            comfy.sampler_helpers.convert_cond([entry]),
            x_t,
            x_t.device,
            "positive",
            latent_image=self.latent_image,
            denoise_mask=None,
            seed=self.passes,  # of the noise that upscalers add to their low-resolution picture
        )
        inputs = {
            name: value.process_cond(batch_size=len(x_t), area=None).cond
            for name, value in cond["model_conds"].items()
        }
        options = {**self.transformer_options, "sigmas": sigma}
        return self.model.apply_model(x_t, sigma, **inputs, transformer_options=options)

    def output_scale(self, sigma: Tensor) -> Tensor:
        """See ``imagic_core.objective.Denoiser``: every model sampling is affine in its output."""
        places = sigma.view(-1, 1, 1, 1)
        one, none = torch.ones_like(places), torch.zeros_like(places)
        scale = self.sampling.calculate_denoised(places, one, none)
        return (scale - self.sampling.calculate_denoised(places, none, none)).view_as(sigma)


def _over(sigma: Tensor, x0: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x0.ndim - 1))


def _on_device(value: Any, device: torch.device) -> Any:
    """Copies that may take part in training, of tensors made in another node's inference mode."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, dict):
        return {k: _on_device(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_device(v, device) for v in value)
    return value


def to_device(embedding: Embedding, device: torch.device) -> Embedding:
    """The same embedding on another device."""
    return Embedding(*(tensor.to(device) for tensor in embedding.tensors()))


def _differentiable_attention(_func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    # Sage and other attention kernels that users choose for speed have no backward pass.
    return attention_pytorch(*args, **kwargs)


# ---- training, and undoing it ---------------------------------------------------------------


@contextmanager
def training(
    model: Any,
    x0: Tensor,
    text: Text,
    changes: Mapping[str, torch.nn.Module] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
    save_memory: bool = False,
) -> Iterator[tuple[HostDenoiser, Tensor]]:
    """Load the model for training; on exit, whatever happened, it is as it was.

    Args:
        model: MODEL; it is cloned.
        x0: [B, C, ...] the photographs' latents.
        text: the conditioning whose other entries the model is given.
        changes: state dict key -> module that maps that weight to the changed weight.
        compute_dtype: number format to compute in; None is the model's own.
        save_memory: recompute each block in the backward pass instead of keeping it.

    Yields:
        The denoiser with the changes applied, and x0 on the model's device.
    """
    patcher = _trainable_clone(model)
    if compute_dtype is not None:
        patcher.set_model_compute_dtype(compute_dtype)
    with ExitStack() as undo:
        # Asking for more than there is makes room: the text encoder and the VAE are unloaded.
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=1e20, force_full_load=True
        )
        undo.callback(patcher.cleanup)
        patcher.pre_run()
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(_training_kernels())
        # Some models seed PyTorch's global generator in their conditioning.
        undo.enter_context(torch.random.fork_rng(devices=[]))
        undo.enter_context(_frozen_weights(patcher.model))
        undo.enter_context(_norms_on_copies(patcher.model))
        if save_memory:
            undo.enter_context(_checkpointed(patcher.model.diffusion_model))
        if changes:
            undo.enter_context(_changed_weights(patcher, changes))
        x0 = x0.to(patcher.load_device)
        dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
        yield HostDenoiser(patcher, x0, text.options, dtype), x0


def check_trainable(node: str, model: Any) -> None:
    """Refuse a model whose weights cannot pass a gradient on.

    Raises:
        ValueError: they are quantised.
    """
    for name, weight in model.model.diffusion_model.named_parameters():
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            raise ValueError(
                f"{node}: 'model' is quantised ({name} is a {type(weight.data).__name__} of "
                f"{weight.dtype}), which no gradient passes; load the model in float32, float16, "
                "bfloat16 or plain float8 instead."
            )


def _trainable_clone(model: Any) -> Any:
    """A clone with its weights in ordinary memory: dynamic weights are views that may vanish."""
    is_dynamic = getattr(model, "is_dynamic", None)
    if is_dynamic is not None and is_dynamic():
        return model.clone(disable_dynamic=True)
    return model.clone()


@contextmanager
def _training_kernels() -> Iterator[None]:
    """Newer hosts choose kernels with a backward pass by this flag."""
    if not hasattr(comfy.model_management, "in_training"):
        yield
        return
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _frozen_weights(model: torch.nn.Module) -> Iterator[None]:
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
    alias = torch.empty(0, dtype=data.dtype, device=data.device)
    alias.set_(data.untyped_storage(), data.storage_offset(), data.size(), data.stride())
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(alias, requires_grad=False)
    return alias


@contextmanager
def _norms_on_copies(model: torch.nn.Module) -> Iterator[None]:
    """Some transformers add to a tensor in place after a norm has kept it for its backward pass.

    Autograd refuses that, and recomputed blocks give wrong gradients without a word.
    """

    def copied(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(_copied, args))

    hooks = [
        module.register_forward_pre_hook(copied)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _checkpointed(network: torch.nn.Module) -> Iterator[None]:
    """Recompute each block of the network in the backward pass instead of keeping it."""
    blocks = list(_blocks(network))
    for block in blocks:
        block.forward = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _blocks(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    containers = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)
    for child in network.children():
        if isinstance(child, containers):
            yield from _blocks(child)
        else:
            yield child


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def on_copies(*args: Any, **kwargs: Any) -> Any:
        # Some blocks add to their input in place; it must still be there for the second pass.
        return forward(*map(_copied, args), **{k: _copied(v) for k, v in kwargs.items()})

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(on_copies, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


# ---- the weights of the model ---------------------------------------------------------------


def new_changes(
    model: Any, method: str, rank: int, alpha: float, seed: int
) -> dict[str, torch.nn.Module]:
    """State dict key -> untrained change, of the weights that ``method`` moves.

    Raises:
        ValueError: see ``imagic_core.finetune.choose_changes``.
    """
    weights = {
        f"diffusion_model.{path}.{name}": tensor
        for path, module in model.model.diffusion_model.named_modules()
        if hasattr(module, "weight_function")  # the host can patch it
        for name in ("weight", "bias")
        if (tensor := getattr(module, name, None)) is not None
    }

    def low_rank(weight: Tensor) -> torch.nn.Module:
        shape = torch.empty(weight.shape, dtype=torch.float32)
        return adapter_maps["LoRA"].create_train(shape, rank=rank, alpha=alpha)

    # The host's LoRA module starts from PyTorch's global generator, which is not ours to move.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return choose_changes(method, weights, low_rank)


@contextmanager
def _changed_weights(patcher: Any, changes: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Pass weights through their changes in every forward, as the host does with its wrappers."""
    before: list[tuple[torch.nn.Module, str, bool, list[Any]]] = []
    try:
        for key, change in changes.items():
            path, name = key.rsplit(".", 1)
            module = patcher.model.get_submodule(path)
            functions = f"{name}_function"
            present = getattr(module, functions)
            before.append((module, functions, functions in vars(module), present))
            stored = getattr(module, name).dtype
            change.to(patcher.load_device)
            setattr(module, functions, [*present, _AsStored(change, key, stored)])
        yield
    finally:
        for module, functions, own, present in reversed(before):
            if own:
                setattr(module, functions, present)
            else:
                delattr(module, functions)


class _AsStored:
    """Applies a change as the host's sampler will have it: rounded to the stored number format.

    Differences are added in float32 and rounded when the host patches the model. Training through
    the same rounding (with the gradient passing straight through) is what makes the loss at the
    end of training the loss of the returned MODEL.
    """

    def __init__(self, change: torch.nn.Module, key: str, stored: torch.dtype) -> None:
        self.change, self.seed, self.stored = change, string_to_seed(key), stored

    def __call__(self, weight: Tensor) -> Tensor:
        changed = self.change(weight.float())
        if self.stored != torch.float32:
            rounded = comfy.float.stochastic_rounding(
                changed.detach().clone(), self.stored, seed=self.seed
            )
            changed = changed + (rounded.to(changed) - changed).detach()
        return changed.to(weight.dtype)

    def move_to(self, device: torch.device) -> int:
        """The host moves its weight functions along with the model."""
        self.change.to(device)
        return 0


def changes_to_lora(changes: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Trained changes as a LORA_MODEL in the host's own key names, float32 on the CPU."""
    lora: dict[str, Tensor] = {}
    for key, change in changes.items():
        path, name = key.rsplit(".", 1)
        if isinstance(change, Difference):
            lora[f"{path}.{'diff' if name == 'weight' else 'diff_b'}"] = change.difference
        else:
            lora.update((f"{path}.{part}", p) for part, p in change.named_parameters())
    return {name: p.detach().float().cpu().contiguous() for name, p in lora.items()}


def apply_lora(model: Any, lora: dict[str, Tensor], strength: float = 1.0) -> Any:
    """A fresh clone of MODEL with the LORA_MODEL added by the host's own loader."""
    with torch.inference_mode(False):
        return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def check_lora(node: str, socket: str, model: Any, lora: Mapping[str, Tensor]) -> None:
    """Refuse a LORA_MODEL that names layers which the model does not have.

    Raises:
        ValueError: it was learned on another kind of model.
    """
    layers = {f"diffusion_model.{path}" for path, _ in model.model.diffusion_model.named_modules()}
    suffixes = (".lora_up.weight", ".lora_down.weight", ".alpha", ".diff", ".diff_b")
    unknown = [
        key
        for key in lora
        if next((key[: -len(s)] for s in suffixes if key.endswith(s)), "") not in layers
    ]
    if unknown or not lora:
        example = f", such as {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"{node}: '{socket}' has {len(unknown)} of {len(lora)} weights for layers that the "
            f"model does not have{example}; connect the kind of model it was learned on."
        )


def lora_by_part(model: Any, lora: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a LORA_MODEL into the network's `encoder`, `middle` and `decoder`.

    A U-Net has these by construction. Of a network that is one row of blocks, they are the first,
    second and last third of the row. What comes before the blocks counts as encoder, what comes
    after them as decoder.
    """
    network = model.model.diffusion_model
    rows = [
        f"diffusion_model.{path}.{i}."
        for path, module in network.named_children()
        if isinstance(module, torch.nn.ModuleList)
        for i in range(len(module))
    ]
    is_unet = hasattr(network, "middle_block")
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "middle": {}, "decoder": {}}
    after = {
        f"diffusion_model.{path}."
        for path in _children_after_blocks(network)
        if not path.startswith("middle_block")
    }
    for key, tensor in lora.items():
        place = next((i for i, row in enumerate(rows) if key.startswith(row)), None)
        if key.startswith("diffusion_model.middle_block."):
            part = "middle"
        elif place is None:
            part = "decoder" if any(key.startswith(path) for path in after) else "encoder"
        elif is_unet:
            part = (
                "encoder" if rows[place].startswith("diffusion_model.input_blocks.") else "decoder"
            )
        else:
            part = ("encoder", "middle", "decoder")[min(2, 3 * place // len(rows))]
        parts[part][key] = tensor
    return parts


def _children_after_blocks(network: torch.nn.Module) -> list[str]:
    names = [name for name, _ in network.named_children()]
    lists = [n for n, m in network.named_children() if isinstance(m, torch.nn.ModuleList)]
    return names[names.index(lists[-1]) + 1 :] if lists else []


def log(message: str, *values: object) -> None:
    """Say something in ComfyUI's console."""
    logging.getLogger("comfyui-imagic").info(message, *values)
