"""One rate for every network: what the first step of `lora` does to each layer of every family."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from families import kinds


def seen(
    sums: dict[str, list[float]], name: str, layer: Any, given: Any, made: torch.Tensor
) -> None:
    """Add up the squares of what a layer's weight takes and of what it gives.

    Of a convolution each place counts as often as the kernel comes upon it, the edges as well.
    """
    (x,), bias, again = given, layer.bias, 1.0
    if hasattr(layer, "kernel_size"):
        again = prod(layer.kernel_size) / prod(layer.stride)
        bias = None if bias is None else bias.view(-1, *[1] * len(layer.kernel_size))
    y = made.float() if bias is None else made.float() - bias.float()
    sums[name][0] += again * x.float().square().sum().item()
    sums[name][1] += y.square().sum().item()


def test_the_first_step_moves_every_layer_by_the_same_share(nodes, loaded) -> None:
    """Of what the layer makes of the photograph: the rate, between the r directions of the change.

    Of whatever kind and width the network is; measured here by hooks on each layer.
    """
    family, model = loaded
    with torch.inference_mode():
        text, image = kinds.conditioning(family, seed=1), kinds.latent(family, seed=2)
    settings = replace(nodes.core.finetune.METHODS["lora"], steps=1)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    shares = {}
    with torch.inference_mode(), nodes.session(model, text, image, "lora") as session:
        paths = {key: key.removesuffix(".weight") for key in session.changes}
        draws = nodes.draws(session, 4, torch.Generator().manual_seed(0), stratified=True)
        with ExitStack() as hooks, torch.no_grad():
            for key, path in paths.items():
                layer = session.denoiser.model.get_submodule(path)
                hooks.callback(layer.register_forward_hook(partial(seen, sums, key)).remove)
            nodes.losses(session, session.embedding.tensors(), draws)
        nodes.core.finetune.finetune_model(
            session.denoiser, session.photographs, session.embedding, session.changes,
            settings, lambda _: None,
        )  # fmt: skip
        for key, change in session.changes.items():
            down = change.down.detach()
            if down.any():
                # The largest singular value of up @ down, by matrices of r x r.
                squares = down @ down.mT @ (change.out.detach() @ change.out.detach().mT)
                size = torch.linalg.eigvals(squares).real.max().item() ** 0.5
                taken, made = sums[key]
                shares[key] = size * len(down) ** 0.5 / (made / taken) ** 0.5
    assert len(shares) > 0.5 * len(session.changes)
    apart = {key: share / settings.learning_rate - 1 for key, share in shares.items()}
    assert {key: by for key, by in apart.items() if abs(by) > 0.1} == {}
