"""The nodes called in this process as ComfyUI's executor calls them, and what to give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from families import kinds
from families.newer import NEWER
from losses import mean_loss

Result = tuple[Any, ...]

PREDICTS = {
    "EPS": "noise", "V_PREDICTION": "v", "V_PREDICTION_DDPM": "v", "V_PREDICTION_EDM": "v",
    "EDM": "v", "FLOW": "flow", "FLUX": "flow", "FLOW_COSMOS": "rectified",
}  # fmt: skip
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
        text = self.host.read_sentence("text", conditioning)
        photographs = self.host.read_photographs(model, latent)
        with self.host.trainable(model, photographs, text) as (denoiser, photographs):
            fixed = core.draw(
                denoiser.sigmas, photographs, draws, torch.Generator().manual_seed(1234)
            )
            return mean_loss(core, denoiser, photographs, text.embedding, fixed)

    def gradients(
        self,
        model: Any,
        conditioning: Any,
        latent: Any,
        *,
        recompute: bool = False,
        at_once: int = 2,
    ) -> dict[str, torch.Tensor]:
        """Of equation 3 by the embedding and by every weight, on the same two draws in every call.

        To compare ways of computing by: of what rounding leaves of a gradient of nothing, Adam
        makes a whole step.
        """
        core = self.module.imagic_core.objective
        text = self.host.read_sentence("text", conditioning)
        photographs = self.host.read_photographs(model, latent)
        with torch.inference_mode():
            changes = self.host.new_changes(model, "full", 8, 4.0, 0)
            with self.host.trainable(
                model, photographs, text, changes, recompute=recompute
            ) as (denoiser, photographs):
                leaves = [t.detach().clone().requires_grad_() for t in text.embedding.tensors()]
                fixed = torch.Generator().manual_seed(1234)
                draws = core.draw(denoiser.sigmas, photographs, 2, fixed)
                embedding = text.embedding.with_tensors(leaves)
                for part in draws.split(at_once):
                    losses, _ = core.reconstruction_loss(denoiser, photographs, embedding, part)
                    (losses.sum() / len(draws)).backward()
        named = dict(embedding.named())
        named |= {name: change.difference for name, change in changes.items()}
        return {name: leaf.grad for name, leaf in named.items() if leaf.grad is not None}

    def sampled_loss(
        self,
        model: Any,
        conditioning: Any,
        latent: Any,
        draws: int = 16,
        predicts: str | None = "flow",
    ) -> float:
        """The same, asked of the host's own sampling instead of the pack's denoiser.

        ``predicts`` is what the model's network puts out, one of ``PREDICTS``; None measures how
        far x0 moves with it.
        """
        import comfy.sample
        import comfy.samplers

        core, host = self.module.imagic_core.objective, self.host
        losses = []

        class Probe(comfy.samplers.Sampler):
            def sample(self, wrap, sigmas, extra_args, callback, noise, latent_image, *_):
                sampling = wrap.inner_model.model_sampling
                generator = torch.Generator().manual_seed(1234)
                sigmas = host.training_sigmas(sampling)
                fixed = core.draw(sigmas, core.Photographs(latent_image), draws, generator)
                for one in fixed.split(1):
                    noisy = sampling.noise_scaling(
                        core.append_dims(one.sigma, one.noise), one.noise, latent_image, False
                    )
                    x0 = wrap(noisy, one.sigma, **extra_args)
                    # How far x0 moves with the network's output, as the literature has it.
                    spread = getattr(sampling, "sigma_data", 1.0)
                    scale = {
                        "v": spread * one.sigma / (one.sigma**2 + spread**2) ** 0.5,
                        "rectified": one.sigma / (one.sigma + 1),
                        None: _slope(sampling, one.sigma),
                    }.get(predicts, one.sigma)
                    losses.append((((x0 - latent_image) / scale) ** 2).mean().item())
                return latent_image

        with torch.inference_mode():
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(conditioning, conditioning)
            guider.set_cfg(1.0)
            # As the host's sampling nodes do: video models want a frame.
            samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
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
        predicts: str | None = "flow",
    ) -> tuple[float, float, float]:
        """The loss before, at the end of fine-tuning, and of the returned MODEL.

        The first and the last are `sampled_loss`; the model that came in must have the first
        afterwards, too.
        """
        core = self.module.imagic_core
        before = self.sampled_loss(model, text, latent, draws, predicts)
        # As the node does it, but stopping to measure before the changes are handed over.
        read = self.host.read_sentence("text", text)
        photographs = self.host.read_photographs(model, latent)
        with torch.inference_mode():
            changes = self.host.new_changes(model, method, 8, 4.0, 0)
            with self.host.trainable(model, photographs, read, changes) as (denoiser, photographs):
                settings = core.fit.Settings(steps, rate, 0, batch_size, batch_size)
                core.finetune.finetune_model(
                    denoiser, photographs, read.embedding, changes, settings, lambda _: None
                )
                fixed = core.objective.draw(
                    denoiser.sigmas, photographs, draws, torch.Generator().manual_seed(1234)
                )
                ended = mean_loss(
                    core.objective, denoiser, photographs, read.embedding, fixed
                )
            tuned = self.host.apply_lora(model, self.host.changes_to_lora(changes))
        handed_over = self.sampled_loss(tuned, text, latent, draws, predicts)
        assert self.sampled_loss(model, text, latent, draws, predicts) == before
        return before, ended, handed_over


def _slope(sampling: Any, sigma: torch.Tensor) -> torch.Tensor:
    one = torch.ones(1, 1, device=sigma.device)
    none, all_of_it = (sampling.calculate_denoised(sigma, x * one, one) for x in (0, 1))
    return all_of_it - none


def load(checkpoint: Any, **model_options: Any) -> Any:
    """MODEL of a checkpoint, made in inference mode as by the executor."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), output_vae=False, output_clip=False, model_options=model_options
        )[0]


def load_family(name: str, folder: Path, **model_options: Any) -> tuple[kinds.Family, Any]:
    """A model family and its tiny MODEL, as UNETLoader makes it; ``folder`` is left empty."""
    import comfy.sd

    family = (kinds.FAMILIES | NEWER)[name]
    path = folder / f"{name}.safetensors"
    with kinds.small_constants(), family.taken():
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
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
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
