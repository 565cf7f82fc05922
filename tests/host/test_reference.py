"""Stages A and B agree with a plain PyTorch loop on diffusers' UNet with the same weights.

The reference shares nothing with the pack but the draws of (t, eps): another implementation of
the network, its own noise schedule (DDPMScheduler), its own loss, its own Adam at PyTorch's own
linearly decaying rate.
"""

from __future__ import annotations

import pytest
import torch
from families import diffusers_unet

from host import given

STEPS, BATCH, SEED = 12, 2, 11
RATE_A, RATE_B = 1e-2, 1e-4


@pytest.fixture(scope="module")
def unet(model):
    """Diffusers' network with the weights of the loaded checkpoint."""
    return diffusers_unet.of(model).eval()


def reference(unet, x0, embedding, parameters, rate, draws):
    """Equation 3 and Adam as the paper writes them, on diffusers' parts."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    adam = torch.optim.Adam(parameters, lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=len(draws))
    losses = []
    for sigma, noise in draws:
        t = (levels[None] - sigma[:, None]).abs().argmin(1)
        x_t = scheduler.add_noise(x0.expand_as(noise), noise, t)
        predicted = unet(x_t, t, embedding().expand(len(t), -1, -1)).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def draws(nodes, model):
    """The (t, eps) of every step, drawn as the pack draws them."""
    generator = torch.Generator().manual_seed(SEED)
    sigmas = model.model.model_sampling.sigmas
    core = nodes.core.objective
    image = core.Photographs(torch.zeros(1, 4, 8, 8))
    with torch.inference_mode(False):
        drawn = [
            core.draw(sigmas.clone(), image, BATCH, generator, stratified=True)
            for _ in range(STEPS)
        ]
    return [(d.sigma, d.noise) for d in drawn]


def test_stage_a_agrees_with_diffusers(nodes, model, unet, draws):
    target, latent = given.conditioning(), given.latent()
    found, found_losses = nodes.optimize(
        model, target, latent, STEPS, RATE_A, SEED, batch_size=BATCH
    )
    unet.requires_grad_(False)
    # Each token has a rate of its own, which counts in its size.
    tokens = [token.clone().requires_grad_() for token in target[0][0][0]]
    sizes = [token.detach().square().mean().sqrt().item() for token in tokens]
    groups = [{"params": [t], "lr": RATE_A * size} for t, size in zip(tokens, sizes, strict=True)]
    image = latent["samples"].clone() * 0.18215
    losses = reference(unet, image, lambda: torch.stack(tokens)[None], groups, RATE_A, draws)
    e = torch.stack(tokens)[None].detach()

    assert found_losses["loss"] == pytest.approx(losses, rel=1e-3)
    # Adam divides by the gradient's size, so the smallest gradients carry its rounding errors.
    moved, expected = found[0][0] - target[0][0], e - target[0][0]
    assert expected.abs().max() > 5 * RATE_A
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_stage_b_agrees_with_diffusers(nodes, model, unet, draws):
    import comfy.utils

    optimized, latent = given.conditioning(3), given.latent()
    found_losses, settings = (
        [],
        nodes.core.fit.Settings(STEPS, RATE_B, SEED, batch_size=BATCH, stratified=True, decay=True),
    )
    _, found = nodes.finetune_by(
        settings, "full", (model, optimized, latent), losses=found_losses,
        at_end=lambda session: nodes.host.changes_to_lora(session.changes),
    )  # fmt: skip
    unet.requires_grad_(True)
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    before = {n: p.detach().clone() for n, p in unet.named_parameters()}
    e = optimized[0][0].clone()
    image = latent["samples"].clone() * 0.18215
    losses = reference(unet, image, lambda: e, list(unet.parameters()), RATE_B, draws)

    assert losses[-1] < losses[0]
    assert found_losses == pytest.approx(losses, rel=5e-3)
    wrong = expected = 0.0
    for name, parameter in unet.named_parameters():
        path, kind = names[name].rsplit(".", 1)
        ours = found[f"diffusion_model.{path}.{'diff' if kind == 'weight' else 'diff_b'}"]
        moved = (parameter - before[name]).detach()
        wrong += (ours - moved).square().sum().item()
        expected += moved.square().sum().item()
    assert expected > 0 and wrong < 0.05**2 * expected
