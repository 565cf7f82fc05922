"""Families that not every host has: the networks that people edit with since 2024.

The sketches hold what the host's detection reads, in the sizes of the real checkpoints; `sizes`
then make the network small, for most have their width written into the detection. Video families
work on one frame.
"""

from __future__ import annotations

from typing import Any

import torch

from families.kinds import Family, Sketch, _flux, _sdxl, _shape

W = 64
"""Width of the text, where the network does not insist on its own."""


def _chroma() -> Sketch:
    return {
        "double_blocks.0.img_attn.norm.key_norm.scale": _shape(128),
        "single_blocks.0.": _shape(1),
        "distilled_guidance_layer.norms.0.scale": _shape(1),
        "img_in.weight": _shape(128, 64),
        "txt_in.weight": _shape(128, 4096),
    }


def _flux2() -> Sketch:
    return {
        "double_stream_modulation_img.lin.weight": _shape(1),
        "double_blocks.0.img_attn.norm.key_norm.scale": _shape(128),
        "single_blocks.0.": _shape(1),
        "img_in.weight": _shape(128, 128),
        "txt_in.weight": _shape(128, W),
    }


def _lumina(dim: int) -> Sketch:
    return {
        "cap_embedder.1.weight": _shape(dim, W),
        "noise_refiner.0.attention.k_norm.weight": _shape(1),
        "layers.0.": _shape(1),
        "layers.1.": _shape(1),
    } | ({"cap_pad_token": _shape(1)} if dim == 3840 else {})


def _hunyuan_video() -> Sketch:
    return {
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": _shape(1),
        "txt_in.input_embedder.weight": _shape(128, W),
        "img_in.proj.weight": _shape(128, 16, 1, 2, 2),
        "final_layer.linear.weight": _shape(64, 128),
        "vector_in.in_layer.weight": _shape(1),
        "guidance_in.in_layer.weight": _shape(1),
        "double_blocks.0.": _shape(1),
        "single_blocks.0.": _shape(1),
    }


def _hunyuan_image(distilled: bool) -> Sketch:
    sketch = {
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": _shape(1),
        "txt_in.input_embedder.weight": _shape(128, W),
        "img_in.proj.weight": _shape(128, 64, 1, 1),
        "final_layer.linear.weight": _shape(64, 128),
        "byt5_in.fc1.weight": _shape(1),
        "double_blocks.0.": _shape(1),
        "single_blocks.0.": _shape(1),
    }
    return sketch | ({"time_r_in.in_layer.weight": _shape(1)} if distilled else {})


def _sdxl_marked(**marks: float) -> Any:
    def extra(_generator: torch.Generator) -> Sketch:
        return {key.replace("__", "."): torch.full((4,), mark)[:1] for key, mark in marks.items()}

    return extra


_SDXL_ENTRIES = {
    "width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64,
}  # fmt: skip


def _ones(tokens: int) -> torch.Tensor:
    return torch.ones(1, tokens, dtype=torch.long)


def _family(
    name: str, title: str, kind: str, prediction: str, sketch: Any, channels: int, **more: Any
) -> Family:
    """``kind`` is the configuration's class, which the model's class mostly is named after."""
    usual: dict[str, Any] = {"downscale": 8, "context_width": W, "tokens": 16, "model_class": kind}
    return Family(
        name, title, (), "", kind, prediction=prediction, sketch=sketch, latent_channels=channels,
        **(usual | more),
    )  # fmt: skip


NEWER: dict[str, Family] = {
    family.name: family
    for family in (
        _family(
            "sdxl_v", "Stable Diffusion XL, v-prediction", "KOALA_700M", "V_PREDICTION", _sdxl, 4,
            model_class="SDXL", context_width=2048, pooled_width=1280, uses_pooled=True,
            entries=_SDXL_ENTRIES, extra_keys=_sdxl_marked(v_pred=0.0, ztsnr=0.0),
        ),
        _family(
            "playground", "Playground 2.5", "KOALA_700M", "EDM", _sdxl, 4,
            model_class="SDXL", context_width=2048, pooled_width=1280, uses_pooled=True,
            entries=_SDXL_ENTRIES, extra_keys=_sdxl_marked(edm_mean=0.0, edm_std=1.0),
        ),
        _family(
            "cosxl", "CosXL", "KOALA_700M", "V_PREDICTION_EDM", _sdxl, 4,
            model_class="SDXL", context_width=2048, pooled_width=1280, uses_pooled=True,
            entries=_SDXL_ENTRIES, extra_keys=_sdxl_marked(edm_vpred__sigma_max=120.0),
        ),
        _family(
            "auraflow", "AuraFlow", "AuraFlow", "FLOW",
            lambda: {
                "double_layers.0.attn.w1q.weight": _shape(1),
                "single_layers.0.": _shape(1),
                "positional_encoding": _shape(1, 1024, 128),
                "cond_seq_linear.weight": _shape(128, 2048),
            },
            4, context_width=2048,
            sizes={"dim": 128, "n_heads": 2, "global_conddim": 128},
        ),
        _family(
            "hunyuan_dit", "Hunyuan DiT", "HunyuanDiT", "V_PREDICTION",
            lambda: {
                "mlp_t5.0.weight": _shape(1),
                "x_embedder.proj.weight": _shape(128, 4, 2, 2),
                "extra_embedder.0.weight": _shape(1, 1024),
                **{f"blocks.{i}.": _shape(1) for i in range(4)},
            },
            4, context_width=1024, tokens=77,
            sizes={"num_heads": 2, "text_states_dim_t5": W},
            more_text={"conditioning_mt5xl": (256, W)},
            entries={"attention_mask": _ones(77), "attention_mask_mt5xl": _ones(256)},
        ),
        _family(
            "flux_schnell", "Flux schnell", "FluxSchnell", "FLOW", lambda: _flux(guided=False), 16,
            model_class="Flux", context_width=4096, pooled_width=768, uses_pooled=True, large=True,
        ),
        _family(
            "flux2", "Flux.2", "Flux2", "FLUX", _flux2, 128, downscale=16,
            sizes={"num_heads": 1},
        ),
        _family(
            "chroma", "Chroma", "Chroma", "FLUX", _chroma, 16, context_width=4096,
            sizes={"num_heads": 1, "out_dim": 128, "hidden_dim": W, "n_layers": 1},
            entries={"guidance": 0.0},
        ),
        _family(
            "lumina2", "Lumina 2", "Lumina2", "FLOW", lambda: _lumina(2304), 16,
            sizes={"dim": 96, "n_heads": 1, "n_kv_heads": 1, "n_refiner_layers": 1},
        ),
        _family(
            "z_image", "Z-Image", "ZImage", "FLOW", lambda: _lumina(3840), 16,
            model_class="Lumina2",
            sizes={"dim": 256, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1},
        ),
        _family(
            "omnigen2", "OmniGen2", "Omnigen2", "FLOW",
            lambda: {"time_caption_embed.timestep_embedder.linear_1.bias": _shape(1)}, 16,
            sizes={
                "hidden_size": 120, "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 2,
                "num_refiner_layers": 1, "text_feat_dim": W,
            },
            entries={"attention_mask": _ones(16)},
        ),
        _family(
            "qwen_image", "Qwen-Image", "QwenImage", "FLUX",
            lambda: {
                "txt_norm.weight": _shape(3584),
                "img_in.weight": _shape(3072, 64),
                "transformer_blocks.0.": _shape(1),
                "transformer_blocks.1.": _shape(1),
            },
            16, sizes={"num_attention_heads": 1, "joint_attention_dim": W},
        ),
        _family(
            "hidream", "HiDream-I1", "HiDream", "FLOW",
            lambda: {"caption_projection.0.linear.weight": _shape(1)}, 16,
            pooled_width=W, uses_pooled=True, more_text={"conditioning_llama3": (2, 16, W)},
            sizes={
                "num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1,
                "caption_channels": [W, W], "text_emb_dim": W, "llama_layers": [0, 1],
            },
        ),
        _family(
            "hidream_o1", "HiDream-O1", "HiDreamO1", "FLOW",
            lambda: {
                "t_embedder1.mlp.0.weight": _shape(1),
                "x_embedder.proj1.weight": _shape(1),
            },
            3, downscale=1, size=(64, 64), context_width=1,
            sizes={
                "text_config_overrides": {
                    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
                    "num_attention_heads": 1, "num_key_value_heads": 1,
                },
                "vision_config_overrides": {
                    "hidden_size": 64, "num_heads": 1, "intermediate_size": 64, "depth": 1,
                },
            },
            # It reads words, of which the last stands for the noise level.
            entries={"text_input_ids": torch.tensor([[*range(100, 115), 151673]])},
        ),
        _family(
            "cosmos_predict2", "Cosmos Predict2", "CosmosT2IPredict2", "FLOW_COSMOS",
            lambda: {
                "blocks.0.mlp.layer1.weight": _shape(1),
                "blocks.1.": _shape(1),
                "x_embedder.proj.1.weight": _shape(2048, 68),
            },
            16, model_class="CosmosPredict2",
            sizes={
                "model_channels": 128, "num_heads": 1, "adaln_lora_dim": 16,
                "crossattn_emb_channels": W,
            },
        ),
        _family(
            "anima", "Anima", "Anima", "FLOW",
            lambda: {
                "blocks.0.mlp.layer1.weight": _shape(1),
                "blocks.1.": _shape(1),
                "x_embedder.proj.1.weight": _shape(2048, 68),
                "llm_adapter.blocks.0.cross_attn.q_proj.weight": _shape(1),
            },
            16,
            sizes={
                "model_channels": 128, "num_heads": 1, "adaln_lora_dim": 16,
                "crossattn_emb_channels": W,
            },
            inner={
                "comfy.ldm.anima.model.LLMAdapter": {
                    "source_dim": W, "target_dim": W, "model_dim": W, "num_layers": 1,
                    "num_heads": 1,
                }
            },
            entries={
                "t5xxl_ids": torch.arange(16, dtype=torch.int), "t5xxl_weights": torch.ones(16),
            },
        ),
        _family(
            "kandinsky5", "Kandinsky 5 Image", "Kandinsky5Image", "FLOW",
            lambda: {
                "visual_transformer_blocks.0.cross_attention.key_norm.weight": _shape(1),
                "visual_transformer_blocks.0.feed_forward.in_layer.weight": _shape(128, 128),
                "visual_embeddings.in_layer.weight": _shape(2560, 64),
                "visual_embeddings.in_layer.bias": _shape(2560),
                "time_embeddings.in_layer.bias": _shape(W),
                "text_transformer_blocks.0.": _shape(1),
            },
            16, pooled_width=W, uses_pooled=True,
            sizes={"model_dim": 128, "in_text_dim": W, "in_text_dim2": W},
        ),
        _family(
            "wan21", "Wan 2.1", "WAN21_T2V", "FLOW",
            lambda: {
                "head.modulation": _shape(1, 2, 1536),
                "head.head.weight": _shape(64, 1536),
                "blocks.0.ffn.0.weight": _shape(128, 1536),
                "blocks.1.": _shape(1),
                "patch_embedding.weight": _shape(1536, 16, 1, 2, 2),
            },
            16, model_class="WAN21", sizes={"dim": 128, "num_heads": 1, "text_dim": W},
        ),
        _family(
            "hunyuan_video", "HunyuanVideo", "HunyuanVideo", "FLOW", _hunyuan_video, 16,
            pooled_width=W, uses_pooled=True, sizes={"vec_in_dim": W}, entries={"guidance": 6.0},
        ),
        _family(
            "hunyuan_image", "HunyuanImage 2.1", "HunyuanImage21", "FLOW",
            lambda: _hunyuan_image(False), 64, downscale=32,
            sizes={"qkv_bias": True}, more_text={"conditioning_byt5small": (8, 1472)},
        ),
        _family(
            "hunyuan_image_distilled", "HunyuanImage 2.1 distilled", "HunyuanImage21", "FLOW",
            lambda: _hunyuan_image(True), 64, downscale=32, sizes={"qkv_bias": True},
        ),
        _family(
            "ltxv", "LTX-Video", "LTXV", "FLUX",
            lambda: {
                "adaln_single.emb.timestep_embedder.linear_1.bias": _shape(1),
                "transformer_blocks.0.attn2.to_k.weight": _shape(2048, 2048),
                "transformer_blocks.1.": _shape(1),
            },
            128, downscale=32, entries={"attention_mask": _ones(16)},
            sizes={"num_attention_heads": 2, "cross_attention_dim": 128, "caption_channels": W},
        ),
        _family(
            "cosmos", "Cosmos Predict1", "CosmosT2V", "EDM",
            lambda: {
                "blocks.block0.blocks.0.block.attn.to_q.0.weight": _shape(4096, 4096),
                "x_embedder.proj.1.weight": _shape(4096, 68),
            },
            16, model_class="CosmosVideo",
            sizes={
                "model_channels": 128, "num_heads": 1, "num_blocks": 2, "adaln_lora_dim": 16,
                "crossattn_emb_channels": W,
            },
        ),
        _family(
            "mochi", "Mochi", "GenmoMochi", "FLOW", lambda: {"t5_yproj.weight": _shape(1)}, 12,
            tokens=256, entries={"attention_mask": _ones(256)},
            sizes={
                "depth": 2, "num_heads": 2, "hidden_size_x": 128, "hidden_size_y": W,
                "mlp_ratio_x": 96.0, "t5_feat_dim": W,
            },
        ),
        _family(
            "cogvideox", "CogVideoX", "CogVideoX_T2V", "V_PREDICTION_DDPM",
            lambda: {
                "blocks.0.norm1.linear.weight": _shape(6 * 128, W),
                "blocks.1.": _shape(1),
                "patch_embed.proj.weight": _shape(128, 16, 2, 2),
                "patch_embed.text_proj.weight": _shape(128, W),
            },
            16, model_class="CogVideoX", sizes={"max_text_seq_length": 16},
        ),
        _family(
            "pixeldit", "PixelDiT", "PixelDiTT2I", "FLOW",
            lambda: {"core.pixel_embedder.proj.weight": _shape(1)}, 3, downscale=1, size=(32, 32),
            sizes={
                "hidden_size": 128, "num_groups": 2, "pixel_attn_hidden_size": 128,
                "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": W,
            },
        ),
        _family(
            "ernie", "Ernie Image", "ErnieImage", "FLOW",
            lambda: {"layers.0.mlp.linear_fc2.weight": _shape(1)}, 128, downscale=16,
            sizes={
                "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2,
                "ffn_hidden_size": 128, "text_in_dim": W,
            },
        ),
        _family(
            "joyimage", "JoyImage", "JoyImage", "FLOW",
            lambda: {
                "double_blocks.0.attn.img_attn_qkv.weight": _shape(1),
                "double_blocks.0.attn.img_attn_q_norm.weight": _shape(128),
                "double_blocks.1.": _shape(1),
                "condition_embedder.time_embedder.linear_1.weight": _shape(1),
                "img_in.weight": _shape(128, 16, 1, 2, 2),
            },
            16, sizes={"text_dim": W},
        ),
        _family(
            "lens", "Lens", "Lens", "FLUX",
            lambda: {
                "transformer_blocks.0.attn.norm_added_q.weight": _shape(1),
                "transformer_blocks.0.img_mlp.w1.weight": _shape(1),
                "transformer_blocks.1.": _shape(1),
                "img_in.weight": _shape(128, 128),
                "proj_out.weight": _shape(128, 128),
                "txt_norm.weight": _shape(W),
            },
            128, downscale=16, sizes={"num_attention_heads": 2},
        ),
        _family(
            "mage_flow", "Mage-Flow", "MageFlow", "FLOW",
            lambda: {
                "txt_norm.weight": _shape(2560),
                "proj_out.weight": _shape(128),
                "transformer_blocks.0.": _shape(1),
                "transformer_blocks.1.": _shape(1),
            },
            128, downscale=16, sizes={"num_attention_heads": 1, "joint_attention_dim": W},
        ),
        _family(
            "boogu", "Boogu Image", "Boogu", "FLOW",
            lambda: {
                "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight": _shape(1),
                "single_stream_layers.0.": _shape(1),
                "noise_refiner.0.": _shape(1),
                "x_embedder.weight": _shape(120, 64),
                "time_caption_embed.caption_embedder.0.weight": _shape(W),
            },
            16, sizes={"num_attention_heads": 1, "num_kv_heads": 1},
            entries={"attention_mask": _ones(16)},
        ),
        _family(
            "ideogram4", "Ideogram 4", "Ideogram4", "FLOW",
            lambda: {
                "embed_image_indicator.weight": _shape(1),
                "input_proj.weight": _shape(128, 128),
                "layers.0.": _shape(1),
                "layers.1.": _shape(1),
            },
            128, downscale=16,
            sizes={
                "num_attention_heads": 1, "attention_head_dim": 128, "intermediate_size": 128,
                "adaln_dim": W, "llm_features_dim": W,
            },
        ),
        _family(
            "krea2", "Krea 2", "Krea2", "FLUX",
            lambda: {
                "txtfusion.projector.weight": _shape(1, 2),
                "txtfusion.layerwise_blocks.0.prenorm.scale": _shape(W),
                "first.weight": _shape(128, 64),
                "blocks.0.attn.wq.weight": _shape(128, 128),
                "blocks.0.attn.wk.weight": _shape(128, 128),
                "blocks.1.": _shape(1),
            },
            16, context_width=2 * W, sizes={"txtheads": 1, "txtkvheads": 1},
        ),
    )
}  # fmt: skip
