"""The smallest checkpoint of each model family that the host still takes for that family.

A family is written down as a *sketch*: the few keys and shapes that the host's detection reads.
The detection turns the sketch into a configuration, the host's own class is made from it, every
weight gets a random value, and the state dict is a file for ``UNETLoader`` (folder
``diffusion_models``, no text encoder, no autoencoder). Conditionings and latents are made here
directly, with the widths and entries that the host's own text-encode nodes give.

Some families have their width fixed by constants in the detection, so that even one block of them
takes gigabytes; so have all text encoders and autoencoders. `small_constants` shrinks those
constants while tests build, load and use them; the detection, the classes and the sampling stay
the host's. Text encoders and autoencoders are in `whole`.
"""

from __future__ import annotations

import functools
import json
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

Sketch = dict[str, torch.Tensor]

# What `small_constants` changes, by the `image_model` that the host detected.
SMALL_CONSTANTS: dict[str, dict[str, Any]] = {
    "pixart_sigma": {"hidden_size": 128},
    "flux": {"num_heads": 1},
    "chroma_radiance": {
        "num_heads": 1,
        "out_dim": 128,
        "hidden_dim": 64,
        "n_layers": 1,
        "nerf_depth": 1,
    },
}

# The same, by the `model_type` of a text encoder's configuration: what a text encoder puts out
# keeps its shape, as the network asks for it.
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "clip_text_model": {"num_hidden_layers": 3, "intermediate_size": 64},
    "t5": {"num_layers": 1, "d_ff": 64, "d_kv": 8, "num_heads": 2},
}
SMALL_AUTOENCODER = {"ch": 32, "num_res_blocks": 1}
# Channels of a U-Net, in the place of those by which the host tells the families.
UNET_WIDTH, UNET_WIDTHS = 64, {"x4": 256, "others": 320}


PREDICTS = {
    "EPS": "noise",
    "V_PREDICTION": "v",
    "V_PREDICTION_DDPM": "v",
    "V_PREDICTION_EDM": "v",
    "EDM": "v",
    "FLOW": "flow",
    "FLUX": "flow",
    "FLOW_COSMOS": "rectified",
}
"""What a network puts out, by the host's name for the kind of model."""


@dataclass(frozen=True)
class Family:
    """One model family: what the host must take it for, and the inputs it expects."""

    name: str
    title: str
    text_encoders: tuple[str, ...]
    """Names in `whole.TEXT_ENCODERS`, in the order of the host's loader."""
    clip_type: str
    """What the host's loader of text encoders calls the family; "" where it does not ask."""
    config_class: str
    """Name of the `comfy.supported_models` class."""
    model_class: str
    """Name of the `comfy.model_base` class."""
    prediction: str
    """Name of the `comfy.model_base.ModelType`."""
    sketch: Callable[[], Sketch]
    latent_channels: int
    downscale: int
    """Pixels along one side of a latent cell."""
    context_width: int
    pooled_width: int | None = None
    """Width of `pooled_output`; None where the text encoder gives no pooled vector."""
    uses_pooled: bool = False
    """Whether the model reads the pooled vector (SD1.x has one and ignores it)."""
    size: tuple[int, int] = (8, 8)
    """Smallest comfortable latent, rows by columns."""
    tokens: int = 77
    entries: dict[str, Any] = field(default_factory=dict)
    """Further entries of the conditioning, such as `guidance`."""
    scalars: tuple[str, ...] = ()
    """Those of the entries that change the prediction."""
    concat: str | None = None
    """`inpaint` or `upscale` where the model takes a picture beside the noise."""
    extra_keys: Callable[[torch.Generator], Sketch] | None = None
    """Keys that only the detection reads."""
    large: bool = False
    """More than 0.3 GB of float32 weights unless built under `small_constants`."""
    more_text: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Entries that further text encoders give -> shape after the batch."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """What the network's configuration has instead of what the sketch tells; see `taken`."""
    inner: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Class of the host's inside the network -> arguments that make it small; see `taken`."""

    @property
    def predicts(self) -> str:
        """What the network puts out: `noise`, `v`, `flow` or `rectified`."""
        return PREDICTS[self.prediction]

    def state_dict(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Sketch:
        """Random weights of the host's own class, reproducible from `seed`.

        Nothing is left at zero: the usual zero-initialised output layers would cut the prediction
        off from the text, and a test on such a model proves nothing.
        """
        with self.taken():
            model = _host_model(self.sketch())
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(model, generator, dtype)
        if self.extra_keys is not None:
            weights.update(self.extra_keys(generator))
        return weights

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let the host take any file for this family, in its small size; loads must be inside."""
        from comfy import model_detection

        if not self.sizes and not self.inner:
            yield
            return
        detect, sketch = model_detection.model_config_from_unet, self.sketch()

        def detect_small(weights: Sketch, *_: Any, **__: Any) -> Any:
            # By these the host knows how a file is quantised.
            marks = {k: v for k, v in weights.items() if k.endswith(("comfy_quant", "scaled_fp8"))}
            if "scaled_fp8" in marks:  # which older hosts take out
                del weights["scaled_fp8"]
            config = detect(sketch | marks, "")
            config.unet_config.update(self.sizes)
            return config

        with ExitStack() as undo:
            taken = mock.patch.object(model_detection, "model_config_from_unet", detect_small)
            undo.enter_context(taken)
            for name, arguments in self.inner.items():
                original = pkgutil.resolve_name(name)
                small = functools.partial(original, **arguments)
                undo.enter_context(mock.patch(name, small))
            yield

    def is_known(self) -> bool:
        """Whether this host has the family at all."""
        from comfy import supported_models

        return hasattr(supported_models, self.config_class)

    def build(self, path: Path | str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
        """Write the checkpoint (safetensors, in `dtype`) and return its path."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(seed, dtype), path)
        return path


def load(
    name: str, folder: Path, *, narrow: bool = True, **model_options: Any
) -> tuple[Family, Any]:
    """A family and its tiny MODEL, as UNETLoader makes it; ``folder`` is left empty."""
    import comfy.sd

    from families.newer import NEWER

    family = (FAMILIES | NEWER)[name]
    path = folder / f"{name}.safetensors"
    with small_constants(narrow=narrow), family.taken():
        family.build(path)
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(path), model_options=model_options)
    path.unlink()
    return family, model


def conditioning(
    family: Family,
    tokens: int | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> list[list[Any]]:
    """A CONDITIONING as the host's text-encode nodes give for `family`.

    `tokens` is the length of the embedding ``[1, tokens, context_width]``, normally distributed
    with unit variance; `size` is the latent's rows and columns, which the pictures beside the
    noise must match.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = size or family.size
    embedding = torch.randn(1, tokens or family.tokens, family.context_width, generator=generator)
    pooled = None
    if family.pooled_width is not None:
        pooled = torch.randn(1, family.pooled_width, generator=generator)
    entries: dict[str, Any] = {"pooled_output": pooled, **family.entries}
    for name, shape in family.more_text.items():
        entries[name] = torch.randn(1, *shape, generator=generator)
    if family.concat == "inpaint":
        mask = torch.zeros(1, 1, rows * family.downscale, columns * family.downscale)
        mask[..., : mask.shape[-1] // 2] = 1.0
        entries["concat_latent_image"] = torch.randn(
            1, family.latent_channels, rows, columns, generator=generator
        )
        entries["concat_mask"] = mask
    elif family.concat == "upscale":
        entries["concat_image"] = torch.rand(1, 3, rows, columns, generator=generator) * 2 - 1
    return [[embedding, entries]]


def latent(
    family: Family, seed: int = 0, batch: int = 1, size: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """A LATENT for `family`: random samples ``[batch, channels, rows, columns]``."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = size or family.size
    shape = (batch, family.latent_channels, rows, columns)
    return {"samples": torch.randn(shape, generator=generator)}


@contextmanager
def small_constants(*, narrow: bool = False) -> Iterator[None]:
    """Let the host use small values where it has constants for large models.

    ``narrow``: of U-Nets, too, which it takes at their full width as well; see `narrow_unets`.

    Builds and loads must both be inside, for a file built inside cannot be loaded outside. What was
    loaded inside can be used outside.
    """
    from comfy import model_detection, sd, sd1_clip

    detect = model_detection.detect_unet_config

    def detect_small(*args: Any, **kwargs: Any) -> dict[str, Any] | None:
        config = detect(*args, **kwargs)
        if config is not None:
            config.update(SMALL_CONSTANTS.get(config.get("image_model"), {}))
        return config

    encoder = sd1_clip.SDClipModel.__init__

    def small_encoder(
        self: Any, *args: Any, textmodel_json_config: Any = None, **kwargs: Any
    ) -> None:
        config = textmodel_json_config
        if config is None:
            config = Path(sd1_clip.__file__).with_name("sd1_clip_config.json")
        if not isinstance(config, dict):
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        config = {**config, **SMALL_ENCODERS.get(config.get("model_type", ""), {})}
        encoder(self, *args, textmodel_json_config=config, **kwargs)

    autoencoder = sd.AutoencoderKL

    def small_autoencoder(**kwargs: Any) -> Any:
        for name in kwargs:
            if name.endswith("ddconfig"):  # newer hosts have one more, for the decoder
                kwargs[name] = {**kwargs[name], **SMALL_AUTOENCODER}
        return autoencoder(**kwargs)

    with (
        mock.patch.object(model_detection, "detect_unet_config", detect_small),
        narrow_unets() if narrow else nullcontext(),
        mock.patch.object(sd1_clip.SDClipModel, "__init__", small_encoder),
        mock.patch.object(sd, "AutoencoderKL", small_autoencoder),
    ):
        yield


@contextmanager
def narrow_unets() -> Iterator[None]:
    """Let the host make U-Nets of ``UNET_WIDTH`` of a sketch, and take them for what they stand.

    Those of full width it still loads.
    """
    from comfy import model_detection

    match = model_detection.model_config_from_unet_config

    def match_small(config: dict[str, Any], weights: Sketch, *args: Any, **kwargs: Any) -> Any:
        first = weights.get("input_blocks.0.0.weight")
        is_sketch = first is not None and first.device.type == "meta"
        if not is_sketch and config.get("model_channels") != UNET_WIDTH:
            return match(config, weights, *args, **kwargs)
        width = UNET_WIDTHS["x4" if config["in_channels"] == 7 else "others"]
        found = match({**config, "model_channels": width}, weights, *args, **kwargs)
        found.unet_config["model_channels"] = UNET_WIDTH
        return found

    with mock.patch.object(model_detection, "model_config_from_unet_config", match_small):
        yield


def narrow_weights(sketch: Sketch, seed: int = 0) -> Sketch:
    """Random half-precision weights of the narrow U-Net that a sketch stands for."""
    with narrow_unets():
        network = _host_model(sketch)
    return random_weights(network, torch.Generator().manual_seed(seed), torch.float16)


def _host_model(sketch: Sketch, device: str | None = None) -> torch.nn.Module:
    from comfy import model_detection

    config = model_detection.model_config_from_unet(sketch, "")
    config.set_inference_dtype(torch.float32, None)
    return config.get_model(sketch, "", device=device).diffusion_model


def random_weights(
    model: torch.nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Sketch:
    """A random value for every weight of a model of the host's."""
    return {
        key: random_weight(key, tensor, generator).to(dtype)
        for key, tensor in sorted(model.state_dict().items())
    }


def random_weight(key: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One that keeps what passes through it near unit variance."""
    if tensor.dim() > 1:
        # Keeps activations near unit variance through any depth of residual blocks.
        fan_in = tensor[0].numel()
        return torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
    noise = torch.randn(tensor.shape, generator=generator) * 0.1
    return noise if key.endswith("bias") else 1 + noise


def _shape(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _unet(
    channels: int,
    width: int,
    context: int,
    down: list[int | None],
    up: list[int],
    linear: bool = True,
    pooled: int | None = None,
) -> Sketch:
    """Keys of a UNet with a middle block that holds one transformer.

    `down` has the number of transformers in each input block after the first (None: a
    downsampling), `up` that in each output block.
    """
    sketch = {
        "input_blocks.0.0.weight": _shape(width, channels, 3, 3),
        "out.2.weight": _shape(4, width, 3, 3),
        "middle_block.1.proj_in.weight": _shape(width, width),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": _shape(width, context),
    }
    if pooled is not None:
        sketch["label_emb.0.0.weight"] = _shape(width * 4, pooled)

    def add_block(prefix: str, depth: int) -> None:
        sketch[prefix + "0.in_layers.0.weight"] = _shape(width)
        sketch[prefix + "0.out_layers.3.weight"] = _shape(width, width, 3, 3)
        for index in range(depth):
            block = f"{prefix}1.transformer_blocks.{index}."
            sketch[block + "attn2.to_k.weight"] = _shape(width, context)
            proj = (width, width) if linear else (width, width, 1, 1)
            sketch[prefix + "1.proj_in.weight"] = _shape(*proj)

    for index, depth in enumerate(down, start=1):
        if depth is None:
            sketch[f"input_blocks.{index}.0.op.weight"] = _shape(width, width, 3, 3)
        else:
            add_block(f"input_blocks.{index}.", depth)
    for index, depth in enumerate(up):
        add_block(f"output_blocks.{index}.", depth)
    return sketch


def _sd1(channels: int) -> Sketch:
    return _unet(channels, 320, 768, down=[1], up=[0, 1], linear=False)


def _sd2() -> Sketch:
    return _unet(4, 320, 1024, down=[1], up=[0, 1])


def _v_prediction_mark(generator: torch.Generator) -> Sketch:
    # The host tells SD2.x v from eps models by the spread of this bias. The smallest model has no
    # such block, so the key is only read by the detection and then reported as unexpected.
    key = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    return {key: torch.randn(320, generator=generator)}


def _sdxl() -> Sketch:
    # These depths are KOALA's, the shallowest model that the host runs by its SDXL class.
    return _unet(4, 320, 2048, down=[0, 2, 5], up=[0, 0, 0, 1], pooled=2816)


def _x4() -> Sketch:
    # The host's list of levels without self-attention has four entries, so there are four levels.
    down = [1, None, 0, None, 0, None, 0]
    return _unet(7, 256, 1024, down=down, up=[0] * 7 + [1])


def _sd3() -> Sketch:
    width = 128
    return {
        "joint_blocks.0.context_block.attn.qkv.weight": _shape(width * 3, width),
        "joint_blocks.0.context_block.attn.ln_q.weight": _shape(64),
        "x_embedder.proj.weight": _shape(width, 16, 2, 2),
        "final_layer.linear.weight": _shape(64, width),
        "y_embedder.mlp.0.weight": _shape(width, 2048),
        "context_embedder.weight": _shape(width, 4096),
        "pos_embed": _shape(1, 64 * 64, width),
    }


def _pixart() -> Sketch:
    return {"t_block.1.weight": _shape(1), "blocks.0.": _shape(1)}


def _narrowest(sketch: Callable[[int], Sketch]) -> Sketch:
    # Where the host's constants ask for one width, only that width makes a working model.
    from comfy import model_detection

    for width in (128, 3072):
        config = model_detection.detect_unet_config(sketch(width), "")
        fits = config["num_heads"] * sum(config["axes_dim"]) == width
        if fits and config.get("out_dim", width) == width:
            return sketch(width)
    raise RuntimeError(f"no width fits {config}")


def _flux(guided: bool = True) -> Sketch:
    def sketch(width: int) -> Sketch:
        guidance = {"guidance_in.in_layer.weight": _shape(width, 256)} if guided else {}
        return guidance | {
            "double_blocks.0.img_attn.norm.key_norm.scale": _shape(128),
            "single_blocks.0.": _shape(1),
            "img_in.weight": _shape(width, 64),
            "txt_in.weight": _shape(width, 4096),
            "vector_in.in_layer.weight": _shape(width, 768),
        }

    return _narrowest(sketch)


def _radiance() -> Sketch:
    def sketch(width: int) -> Sketch:
        return {
            "double_blocks.0.img_attn.norm.key_norm.scale": _shape(128),
            "single_blocks.0.": _shape(1),
            "distilled_guidance_layer.norms.0.scale": _shape(1),
            "nerf_blocks.0.norm.scale": _shape(1),
            "nerf_final_layer_conv.norm.scale": _shape(1),
            "img_in_patch.weight": _shape(width, 3, 16, 16),
            "txt_in.weight": _shape(width, 4096),
        }

    return _narrowest(sketch)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "sd15",
            "Stable Diffusion 1.x",
            ("clip_l",),
            "stable_diffusion",
            "SD15",
            "BaseModel",
            "EPS",
            lambda: _sd1(4),
            4,
            8,
            768,
            pooled_width=768,
        ),
        Family(
            "sd15_inpaint",
            "Stable Diffusion 1.x inpainting",
            ("clip_l",),
            "stable_diffusion",
            "SD15",
            "BaseModel",
            "EPS",
            lambda: _sd1(9),
            4,
            8,
            768,
            pooled_width=768,
            concat="inpaint",
        ),
        Family(
            "sd2_v",
            "Stable Diffusion 2.x, v-prediction",
            ("clip_h",),
            "stable_diffusion",
            "SD20",
            "BaseModel",
            "V_PREDICTION",
            _sd2,
            4,
            8,
            1024,
            pooled_width=1024,
            extra_keys=_v_prediction_mark,
        ),
        Family(
            "sdxl",
            "Stable Diffusion XL",
            ("clip_l", "clip_g"),
            "sdxl",
            "KOALA_700M",
            "SDXL",
            "EPS",
            _sdxl,
            4,
            8,
            2048,
            pooled_width=1280,
            uses_pooled=True,
            entries={
                "width": 64,
                "height": 64,
                "crop_w": 0,
                "crop_h": 0,
                "target_width": 64,
                "target_height": 64,
            },
            scalars=("width", "crop_h", "target_height"),
        ),
        Family(
            "sd3",
            "Stable Diffusion 3",
            ("clip_l", "clip_g", "t5xxl"),
            "",
            "SD3",
            "SD3",
            "FLOW",
            _sd3,
            16,
            8,
            4096,
            pooled_width=2048,
            uses_pooled=True,
            tokens=154,
        ),
        Family(
            "flux",
            "Flux",
            ("clip_l", "t5xxl"),
            "flux",
            "Flux",
            "Flux",
            "FLUX",
            _flux,
            16,
            8,
            4096,
            pooled_width=768,
            uses_pooled=True,
            tokens=256,
            entries={"guidance": 3.5},
            scalars=("guidance",),
            large=True,
        ),
        Family(
            # Its position embedding divides by zero for latents of 32 cells a side or fewer on
            # average, hence the long strip.
            "pixart",
            "PixArt Sigma",
            ("t5xxl",),
            "pixart",
            "PixArtSigma",
            "PixArt",
            "EPS",
            _pixart,
            4,
            8,
            4096,
            size=(8, 58),
            tokens=120,
        ),
        Family(
            "radiance",
            "Chroma Radiance",
            ("t5xxl",),
            "chroma",
            "ChromaRadiance",
            "ChromaRadiance",
            "FLUX",
            _radiance,
            3,
            1,
            4096,
            size=(32, 32),
            tokens=64,
            entries={"guidance": 0.0},
            scalars=("guidance",),
            large=True,
        ),
        Family(
            "x4_upscaler",
            "Stable Diffusion x4 upscaler",
            ("clip_h",),
            "stable_diffusion",
            "SD_X4Upscaler",
            "SD_X4Upscaler",
            "V_PREDICTION",
            _x4,
            4,
            4,
            1024,
            pooled_width=1024,
            size=(16, 16),
            concat="upscale",
            entries={"noise_augmentation": 0.1},
            scalars=("noise_augmentation",),
        ),
    )
}
