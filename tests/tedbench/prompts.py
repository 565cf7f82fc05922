"""The methods as prompts of ComfyUI's API."""

from __future__ import annotations

from typing import Any

from talk.api import Prompt, node

from tedbench.protocol import Protocol

SEEN, SCORED = "seen", "scored"
NEEDED = (
    "BasicScheduler", "CLIPLoader", "CLIPTextEncode", "CLIPVisionLoader", "CheckpointLoaderSimple",
    "FlipSigmas", "ImageBatch", "ImageScale", "ImagicEtaSweep", "ImagicFinetuneModel",
    "ImagicInterpolateConditioning", "ImagicOptimizeEmbedding", "ImagicScoreEdits", "KSampler",
    "KSamplerSelect", "LoadImage", "PreviewAny", "PreviewImage", "SamplerCustom", "VAEDecode",
    "VAEEncode",
)  # fmt: skip

Link = list[Any]


def picture_node(index: int) -> str:
    """The node that puts out the picture of the method's setting of this index."""
    return f"picture_{index}"


def _photograph(protocol: Protocol, photograph: str) -> Prompt:
    return {
        "photograph": node("LoadImage", image=photograph),
        "input": node(
            "ImageScale", image=["photograph", 0], upscale_method="lanczos",
            width=protocol.size, height=protocol.size, crop="center",
        ),
    }  # fmt: skip


def _say(text: str) -> dict[str, Any]:
    return node("CLIPTextEncode", clip=["checkpoint", 1], text=text)


def method_prompt(protocol: Protocol, method: str, photograph: str, text: str) -> Prompt:
    """All settings of one method on one edit; each picture comes out at its ``picture_node``.

    The methods' prompts have the nodes in common that they can, so that a server which gets them
    one after the other trains stage A once.

    Args:
        protocol: of the run.
        method: one of ``METHODS``.
        photograph: its name on the server.
        text: the benchmark's sentence.
    """
    prompt = _photograph(protocol, photograph) | {
        SEEN: node("PreviewImage", images=["input", 0]),
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=protocol.checkpoint),
        "latent": node("VAEEncode", pixels=["input", 0], vae=["checkpoint", 2]),
        "target": _say(text),
        "negative": _say(protocol.negative),
    }
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


def score_prompt(protocol: Protocol, photograph: str, text: str, pictures: list[str]) -> Prompt:
    """Score the photograph as it is and all pictures of an edit, in this order, at ``SCORED``.

    Imagic Score Edits orders what it scores by eta. Only Imagic Eta Sweep makes a list of numbers
    for it on every ComfyUI, so one that is not sampled gives them: here they are only the order.

    Args:
        protocol: of the run.
        photograph: its name on the server.
        text: the benchmark's sentence.
        pictures: their names on the server, all of ``protocol.size``.
    """
    prompt = _photograph(protocol, photograph)
    batch: Link = ["input", 0]
    for index, picture in enumerate(pictures):
        prompt[f"loaded_{index}"] = node("LoadImage", image=picture)
        prompt[f"batch_{index}"] = node("ImageBatch", image1=batch, image2=[f"loaded_{index}", 0])
        batch = [f"batch_{index}", 0]
    prompt["checkpoint"] = node("CheckpointLoaderSimple", ckpt_name=protocol.checkpoint)
    prompt["target"] = _say(text)
    prompt["numbers"] = node(
        "ImagicEtaSweep", target=["target", 0], optimized=["target", 0], start=0.0, stop=1.0,
        count=len(pictures) + 1,
    )  # fmt: skip
    scored = node("ImagicScoreEdits", images=batch, original=["input", 0], etas=["numbers", 1])
    if protocol.clip:
        prompt["vision"] = node("CLIPVisionLoader", clip_name=protocol.clip)
        prompt["clip"] = node("CLIPLoader", clip_name=protocol.clip, type="stable_diffusion")
        scored["inputs"] |= {"clip_vision": ["vision", 0], "clip": ["clip", 0], "text": text}
    prompt[SCORED] = scored
    # Nothing is run that no node puts out.
    prompt["table"] = node("PreviewAny", source=[SCORED, 1])
    return prompt
