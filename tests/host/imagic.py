"""The nodes called in this process as ComfyUI's executor calls them, and what to give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from miniature import families

Result = tuple[Any, ...]

PREDICTS = {"EPS": "noise", "V_PREDICTION": "v", "FLOW": "flow", "FLUX": "flow"}
"""What a network puts out, by the host's name for the kind of model."""


class Pack:
    """The three nodes under short names, run under the executor's inference mode."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.host = module.nodes.comfy_host
        self.nodes = {n.define_schema().node_id: n for n in module.nodes.NODES}

    def call(self, node: str, *args: Any, **kwargs: Any) -> Result:
        with torch.inference_mode():
            return self.nodes[node].execute(*args, **kwargs).result

    def optimize(self, *args: Any, **kwargs: Any) -> Result:
        return self.call("ImagicOptimizeEmbedding", *args, **kwargs)

    def finetune(self, *args: Any, **kwargs: Any) -> Result:
        return self.call("ImagicFinetuneModel", *args, **kwargs)

    def interpolate(self, *args: Any, **kwargs: Any) -> Result:
        return self.call("ImagicInterpolateConditioning", *args, **kwargs)

    def loss(self, model: Any, conditioning: Any, latent: Any, draws: int = 16) -> float:
        """Equation 3 on draws that are the same in every call."""
        core = self.module.imagic_core.objective
        text = self.host.read_text("test", "text", conditioning)
        x0, mask = self.host.read_image("test", model, latent)
        with self.host.training(model, x0, text) as (denoiser, x0):
            fixed = core.draw(denoiser.sigmas, x0, draws, torch.Generator().manual_seed(1234))
            return core.mean_loss(denoiser, x0, text.embedding, fixed, mask)

    def gradients(
        self, model: Any, conditioning: Any, latent: Any, *, save_memory: bool = False
    ) -> dict[str, torch.Tensor]:
        """Of equation 3 by the embedding and by every weight, on the same two draws in every call.

        To compare ways of computing by: of what rounding leaves of a gradient of nothing, Adam
        makes a whole step.
        """
        core = self.module.imagic_core.objective
        text = self.host.read_text("test", "text", conditioning)
        x0, _ = self.host.read_image("test", model, latent)
        with torch.inference_mode():
            changes = self.host.new_changes(model, "full", 8, 4.0, 0)
            with self.host.training(model, x0, text, changes, save_memory=save_memory) as (
                denoiser,
                x0,
            ):
                leaves = [t.detach().clone().requires_grad_() for t in text.embedding.tensors()]
                draws = core.draw(denoiser.sigmas, x0, 2, torch.Generator().manual_seed(1234))
                embedding = core.Embedding(*leaves)
                core.reconstruction_loss(denoiser, x0, embedding, draws)[0].backward()
        named = dict(zip(("tokens", "pooled"), leaves, strict=False))
        named |= {name: change.difference for name, change in changes.items()}
        return {name: leaf.grad for name, leaf in named.items() if leaf.grad is not None}

    def sampled_loss(
        self, model: Any, conditioning: Any, latent: Any, draws: int = 16, predicts: str = "flow"
    ) -> float:
        """The same, asked of the host's own sampling instead of the pack's denoiser.

        ``predicts`` is what the model's network puts out: `noise`, `flow` or `v`.
        """
        import comfy.samplers

        core = self.module.imagic_core.objective
        losses = []

        class Probe(comfy.samplers.Sampler):
            def sample(self, wrap, sigmas, extra_args, callback, noise, latent_image, *_):
                sampling = wrap.inner_model.model_sampling
                generator = torch.Generator().manual_seed(1234)
                fixed = core.draw(sampling.sigmas, latent_image, draws, generator)
                for one in fixed.split(1):
                    noisy = sampling.noise_scaling(
                        one.sigma.view(1, 1, 1, 1), one.noise, latent_image, False
                    )
                    x0 = wrap(noisy, one.sigma, **extra_args)
                    # How far x0 moves with the network's output, as the literature has it.
                    scale = one.sigma / (one.sigma**2 + 1) ** 0.5 if predicts == "v" else one.sigma
                    losses.append((((x0 - latent_image) / scale) ** 2).mean().item())
                return latent_image

        with torch.inference_mode():
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(conditioning, conditioning)
            guider.set_cfg(1.0)
            samples = latent["samples"]
            guider.sample(
                torch.zeros_like(samples), samples, Probe(), torch.tensor([1.0, 0.0]), seed=0
            )
        return sum(losses) / len(losses)


    def hand_off(
        self,
        model: Any,
        text: Any,
        latent: Any,
        method: str,
        *,
        steps: int,
        rate: float,
        batch_size: int = 4,
        draws: int = 8,
        predicts: str = "flow",
    ) -> tuple[float, float, float]:
        """The loss before, at the end of fine-tuning, and of the returned MODEL.

        The first and the last are `sampled_loss`; the model that came in must have the first
        afterwards, too.
        """
        core = self.module.imagic_core
        before = self.sampled_loss(model, text, latent, draws, predicts)
        # As the node does it, but stopping to measure before the changes are handed over.
        read = self.host.read_text("test", "text", text)
        x0, _ = self.host.read_image("test", model, latent)
        with torch.inference_mode():
            changes = self.host.new_changes(model, method, 8, 4.0, 0)
            with self.host.training(model, x0, read, changes) as (denoiser, x0):
                settings = core.fit.Settings(steps, rate, 0, batch_size, batch_size)
                core.finetune.finetune_model(
                    denoiser, x0, read.embedding, changes, settings, lambda _: None
                )
                fixed = core.objective.draw(
                    denoiser.sigmas, x0, draws, torch.Generator().manual_seed(1234)
                )
                ended = core.objective.mean_loss(denoiser, x0, read.embedding, fixed)
            tuned = self.host.apply_lora(model, self.host.changes_to_lora(changes))
        handed_over = self.sampled_loss(tuned, text, latent, draws, predicts)
        assert self.sampled_loss(model, text, latent, draws, predicts) == before
        return before, ended, handed_over


def load(checkpoint: Any, **model_options: Any) -> Any:
    """MODEL of a checkpoint, made in inference mode as by the executor."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), output_vae=False, output_clip=False, model_options=model_options
        )[0]


def load_family(name: str, folder: Path, **model_options: Any) -> tuple[families.Family, Any]:
    """A model family and its tiny MODEL, as UNETLoader makes it; ``folder`` is left empty."""
    import comfy.sd

    family = families.FAMILIES[name]
    path = folder / f"{name}.safetensors"
    with families.small_constants():
        family.build(path)
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(path), model_options=model_options)
    path.unlink()
    return family, model


def conditioning(seed: int = 0, tokens: int = 77, width: int = 768) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return [
            [
                torch.randn(1, tokens, width, generator=generator),
                {"pooled_output": torch.randn(1, width, generator=generator)},
            ]
        ]


def latent(seed: int = 0, count: int = 1, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.inference_mode():
        return {"samples": 5 * torch.randn(count, 4, *size, generator=generator)}


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The model's own weights, bit by bit, without the patches of a clone that was just sampled."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    return {k: v.clone() for k, v in model.model.state_dict().items()}


def apart(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Norm of the difference of what was found, taken as one vector, in that of the expected."""
    a, b = (torch.cat([t.float().flatten() for t in part]) for part in (found, expected))
    return float((a - b).norm() / b.norm())


def snapshot(*values: Any) -> SimpleNamespace:
    """Copies to compare with, of tensors nested in lists and dictionaries."""
    return SimpleNamespace(tensors=[t.clone() for t in tensors_in(values)])


def unchanged(before: SimpleNamespace, *values: Any) -> bool:
    now = tensors_in(values)
    return len(now) == len(before.tensors) and all(
        torch.equal(a, b) for a, b in zip(before.tensors, now, strict=True)
    )


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return []
    return [t for v in value for t in tensors_in(v)]
