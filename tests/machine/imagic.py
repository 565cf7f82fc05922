"""The pack in this process: its nodes called as ComfyUI's executor does, and what is inside."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from core.losses import mean_loss

from machine import in_process
from machine.host_process import remove_base

Result = tuple[Any, ...]


def start(comfyui: Path) -> Pack:
    """Start ComfyUI in this process for a benchmark: on the CPU where there is no GPU."""
    base = Path(tempfile.mkdtemp(prefix="imagic-host-"))
    atexit.register(remove_base, base)
    in_process.start(comfyui, base, cpu=not torch.cuda.is_available())
    return Pack(in_process.load_pack())


@dataclass(frozen=True)
class Session:
    """What a stage works on: the pack's denoiser, photographs, embedding, changes of weights."""

    denoiser: Any
    photographs: Any
    embedding: Any
    changes: dict[str, torch.nn.Module]


class Pack:
    """The nodes, run under the executor's inference mode, and what is inside of the pack."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.host, self.core = module.nodes.comfy_host, module.imagic_core
        self.nodes = {n.define_schema().node_id: n for n in module.nodes.NODES}

    def call(self, node: str, *args: Any, **kwargs: Any) -> Result:
        """What a node of the pack's or of ComfyUI's own puts out."""
        import nodes

        found = nodes.NODE_CLASS_MAPPINGS[node]
        with torch.inference_mode():
            if hasattr(found, "define_schema"):
                return found.execute(*args, **kwargs).result
            return getattr(found(), found.FUNCTION)(*args, **kwargs)

    def defaults(self, node: str) -> dict[str, Any]:
        """The inputs of a node of the pack's that have a default."""
        inputs = self.nodes[node].define_schema().inputs
        return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}

    def optimize(self, *args: Any, keep: bool = False, **kwargs: Any) -> Result:
        """Stage A, each time anew."""
        return self.call("ImagicOptimizeEmbedding", *args, keep=keep, **kwargs)

    def finetune(self, *args: Any, keep: bool = False, **kwargs: Any) -> Result:
        """Stage B, each time anew."""
        return self.call("ImagicFinetuneModel", *args, keep=keep, **kwargs)

    def finetune_by(
        self,
        settings: Any,
        method: str,
        wires: tuple[Any, Any, Any],
        *,
        rank: int = 16,
        losses: list[float] | None = None,
        at_end: Callable[[Any], Any] = lambda session: None,
    ) -> tuple[Any, Any]:
        """Stage B by the core's settings, which the node's inputs say only in part.

        ``wires`` are the node's model, optimized and image. Returns MODEL, and what ``at_end``
        found when the training had ended; the loss of each step is put into ``losses``.
        """
        training, (model, optimized, image) = self.module.nodes.train, wires
        found: list[Any] = []

        def stage(s: Any) -> Any:
            own = self.core.finetune.finetune_model(
                s.denoiser, s.photographs, s.embedding, s.changes, s.settings, s.on_step
            )
            found[:] = [at_end(s)]
            return lambda: training.Learned(self.host.changes_to_lora(s.changes), own)

        with torch.inference_mode():
            learned = training.train(
                training.read_wires(model, "optimized", optimized, image),
                training.Run(settings, "auto", "auto"),
                stage,
                lambda: self.host.new_changes(model, method, rank, settings.seed),
            )
            if losses is not None:
                losses.extend(learned.losses)
            return self.host.apply_lora(model, learned.tensors), found[0]

    def interpolate(self, *args: Any, **kwargs: Any) -> Result:
        return self.call("ImagicInterpolateConditioning", *args, **kwargs)

    @contextmanager
    def session(
        self, model: Any, conditioning: Any, latent: Any, method: str = "", **how: Any
    ) -> Iterator[Session]:
        """What the training nodes hand to a stage: B's with a method, else A's.

        ``how`` is of the pack's ``trainable``.
        """
        sentence = self.host.read_sentence("text", conditioning)
        photographs = self.host.read_photographs(model, latent)
        changes = self.host.new_changes(model, method, 16, 0) if method else {}
        with self.host.trainable(model, photographs, sentence, changes, **how) as (denoiser, on):
            yield Session(denoiser, on, sentence.embedding, changes)

    def draws(
        self, session: Session, count: int, generator: torch.Generator | None = None, **how: Any
    ) -> Any:
        """Draws of (t, eps); without a generator the same in every call."""
        generator = generator or torch.Generator().manual_seed(1234)
        return self.core.objective.draw(
            session.denoiser.sigmas, session.photographs, count, generator, **how
        )

    def losses(self, session: Session, embedding: Sequence[Any], draws: Any) -> torch.Tensor:
        """Equation 3 of each draw, [n], for the tensors of an embedding."""
        core = self.core.objective
        e = session.embedding.with_tensors(list(embedding))
        return core.reconstruction_loss(session.denoiser, session.photographs, e, draws)[0]

    def loss(self, model: Any, conditioning: Any, latent: Any, draws: int = 16) -> float:
        """Equation 3 on draws that are the same in every call."""
        # As all of the executor's: newer hosts cannot move quantised weights between both modes.
        with torch.inference_mode(), self.session(model, conditioning, latent) as session:
            return self.loss_in(session, draws)

    def loss_in(self, session: Session, draws: int) -> float:
        """The same, of a session as it stands."""
        s, fixed = session, self.draws(session, draws)
        return mean_loss(self.core.objective, s.denoiser, s.photographs, s.embedding, fixed)

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
        with (
            torch.inference_mode(),
            self.session(model, conditioning, latent, "full", recompute=recompute) as session,
        ):
            leaves = [t.detach().clone().requires_grad_() for t in session.embedding.tensors()]
            draws = self.draws(session, 2)
            for part in draws.split(at_once):
                (self.losses(session, leaves, part).sum() / len(draws)).backward()
        named = dict(session.embedding.with_tensors(leaves).named())
        named |= {name: change.moved for name, change in session.changes.items()}
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

        ``predicts`` is what the model's network puts out, see `Family.predicts`; None measures
        how far x0 moves with it.
        """
        import comfy.sample
        import comfy.samplers

        core, host = self.core.objective, self.host
        losses = []

        class Probe(comfy.samplers.Sampler):
            def sample(
                self,
                wrap: Any,
                sigmas: Any,
                extra_args: Any,
                callback: Any,
                noise: Any,
                latent_image: torch.Tensor,
                *_: Any,
            ) -> torch.Tensor:
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
        rate: float | None = None,
        relative: bool = True,
        batch_size: int = 4,
        draws: int = 8,
        predicts: str | None = "flow",
    ) -> tuple[float, float, float]:
        """The loss before, at the end of fine-tuning, and of the returned MODEL.

        The first and the last are `sampled_loss`; the model that came in must have the first
        afterwards, too. Without a rate all but steps and draws is the method's default.
        """
        before = self.sampled_loss(model, text, latent, draws, predicts)
        settings = replace(self.core.finetune.METHODS[method], steps=steps, batch_size=batch_size)
        if rate is not None:
            settings = self.core.fit.Settings(
                steps, rate, seed=0, batch_size=batch_size, relative=relative
            )
        tuned, ended = self.finetune_by(
            settings, method, (model, text, latent),
            rank=8, at_end=lambda session: self.loss_in(session, draws),
        )  # fmt: skip
        handed_over = self.sampled_loss(tuned, text, latent, draws, predicts)
        assert self.sampled_loss(model, text, latent, draws, predicts) == before
        return before, ended, handed_over


def _slope(sampling: Any, sigma: torch.Tensor) -> torch.Tensor:
    one = torch.ones(1, 1, device=sigma.device)
    none, all_of_it = (sampling.calculate_denoised(sigma, x * one, one) for x in (0, 1))
    return all_of_it - none
