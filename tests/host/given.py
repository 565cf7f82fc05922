"""What tests give to the nodes, and how they look whether it was left as it was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from families import kinds
from machine import imagic


def load(checkpoint: Any, **model_options: Any) -> Any:
    """MODEL of a file of ``families.tiny``, made in inference mode as by the executor."""
    import comfy.sd

    with torch.inference_mode(), kinds.narrow_unets():
        return comfy.sd.load_diffusion_model(str(checkpoint), model_options=model_options)


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


def assert_weights(model: Any, before: dict[str, torch.Tensor]) -> None:
    """See that the model's own weights are bit by bit what ``weights`` said."""
    now = weights(model)
    assert now.keys() == before.keys()
    assert not [k for k in before if not torch.equal(before[k], now[k])]


def assert_recomputing_changes_nothing(
    nodes: imagic.Pack, model: Any, text: Any, image: Any
) -> None:
    """Blocks that change their inputs in place give wrong gradients when recomputed."""
    kept, again = (nodes.gradients(model, text, image, recompute=on) for on in (False, True))
    assert kept.keys() == again.keys()
    for name in kept:
        assert apart([again[name]], [kept[name]]) < 1e-4, name


def apart(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Norm of the difference of what was found, taken as one vector, in that of the expected."""
    a, b = (torch.cat([t.float().flatten() for t in part]) for part in (found, expected))
    return float((a - b).norm() / b.norm())


def assert_same(found: Any, expected: Any) -> None:
    """See that tensors and numbers nested in lists and dictionaries are equal bit by bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
