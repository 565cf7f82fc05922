"""The networks of ``tiny`` as diffusers has them: another implementation, to compare with."""

from typing import Any


def of(model: Any) -> Any:
    """Diffusers' UNet2DConditionModel with copies of the weights of such a MODEL."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    config = model.model.model_config.unet_config
    names = comfy.utils.unet_to_diffusers(config)
    network: Any = UNet2DConditionModel(
        block_out_channels=(config["model_channels"],) * 2,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    ours = model.model.diffusion_model.state_dict()
    network.load_state_dict(
        {name: ours[names[name]].clone() for name in network.state_dict() if name in names}
    )
    return network
