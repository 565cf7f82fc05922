"""The methods as prompts of ComfyUI's API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talk.api import Prompt, node

from tedbench.protocol import Protocol

SEEN = "seen"
NEEDED = (
    "BasicScheduler", "CLIPTextEncode", "CheckpointLoaderSimple", "FlipSigmas", "ImageScale",
    "ImagicFinetuneModel", "ImagicInterpolateConditioning", "ImagicOptimizeEmbedding", "KSampler",
    "KSamplerSelect", "LoadImage", "PreviewImage", "SamplerCustom", "VAEDecode", "VAEEncode",
)  # fmt: skip

Link = list[Any]


@dataclass(frozen=True)
class Photograph:
    """One that a server has: its ``name`` there, and the size in pixels at which it is edited."""

    name: str
    width: int
    height: int


def picture_node(index: int) -> str:
    """The node that puts out the picture of the method's setting of this index."""
    return f"picture_{index}"


def _say(text: str) -> dict[str, Any]:
    return node("CLIPTextEncode", clip=["checkpoint", 1], text=text)


def method_prompt(protocol: Protocol, method: str, photograph: Photograph, text: str) -> Prompt:
    """All settings of one method on one edit; each picture comes out at its ``picture_node``.

    The methods' prompts have the nodes in common that they can, so that a server which gets them
    one after the other trains stage A once.

    Args:
        protocol: of the run.
        method: one of ``METHODS``.
        photograph: of the edit.
        text: the benchmark's sentence.
    """
    prompt = {
        "photograph": node("LoadImage", image=photograph.name),
        "input": node(
            "ImageScale", image=["photograph", 0], upscale_method="lanczos",
            width=photograph.width, height=photograph.height, crop="center",
        ),
        SEEN: node("PreviewImage", images=["input", 0]),
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=protocol.checkpoint),
        "latent": node("VAEEncode", pixels=["input", 0], vae=["checkpoint", 2]),
        "target": _say(text),
        "negative": _say(protocol.negative),
    }  # fmt: skip
    settings = protocol.settings(method)
    if method == "ddib":
        prompt |= _ddib(protocol)
        latents: list[Link] = [["there", 0]]
    else:
        if method != "sdedit":
            prompt |= _imagic(protocol, with_b=method == "imagic")
        for index, value in enumerate(settings.values()):
            positive: Link = ["target", 0]
            if method != "sdedit":
                positive = [f"eta_{index}", 0]
                prompt[positive[0]] = node(
                    "ImagicInterpolateConditioning", target=["target", 0],
                    optimized=["optimized", 0], eta=value,
                )  # fmt: skip
            prompt[f"sampled_{index}"] = node(
                "KSampler", model=["tuned" if method == "imagic" else "checkpoint", 0],
                positive=positive, negative=["negative", 0], latent_image=["latent", 0],
                seed=protocol.seed, steps=protocol.steps, cfg=protocol.cfg,
                sampler_name=protocol.sdedit_sampler if method == "sdedit" else protocol.sampler,
                scheduler=protocol.scheduler,
                denoise=value if method == "sdedit" else 1.0,
            )  # fmt: skip
        latents = [[f"sampled_{index}", 0] for index in range(len(settings))]
    for index, latent in enumerate(latents):
        prompt[f"decoded_{index}"] = node("VAEDecode", samples=latent, vae=["checkpoint", 2])
        prompt[picture_node(index)] = node("PreviewImage", images=[f"decoded_{index}", 0])
    return prompt


def _imagic(protocol: Protocol, with_b: bool) -> Prompt:
    shared = {"model": ["checkpoint", 0], "image": ["latent", 0]}
    stages = {
        "optimized": node(
            "ImagicOptimizeEmbedding", **shared, target=["target", 0], **protocol.optimize
        )
    }
    if with_b:
        stages["tuned"] = node(
            "ImagicFinetuneModel", **shared, optimized=["optimized", 0], **protocol.finetune
        )
    return stages


def _ddib(protocol: Protocol) -> Prompt:
    """DDIM from the picture to noise without guidance, and back under the target.

    Euler steps on the host's sigmas are DDIM's. Noise levels that begin at 1, those of flow
    models, cannot be inverted by core nodes: they divide by 1 - sigma.
    """

    def way(**inputs: Any) -> dict[str, Any]:
        return node(
            "SamplerCustom", model=["checkpoint", 0], add_noise=False, noise_seed=protocol.seed,
            negative=["negative", 0], sampler=["euler", 0], **inputs,
        )  # fmt: skip

    return {
        "source": _say(protocol.ddib_source),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node(
            "BasicScheduler", model=["checkpoint", 0], scheduler=protocol.scheduler,
            steps=protocol.steps, denoise=1.0,
        ),
        "flipped": node("FlipSigmas", sigmas=["sigmas", 0]),
        "back": way(
            positive=["source", 0], cfg=1.0, sigmas=["flipped", 0], latent_image=["latent", 0]
        ),
        "there": way(
            positive=["target", 0], cfg=protocol.cfg, sigmas=["sigmas", 0],
            latent_image=["back", 0],
        ),
    }  # fmt: skip
