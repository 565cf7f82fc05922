"""How far apart two sentences are drawn, of a network for which that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from core.toy import ToyDenoiser, photograph, sentence
from imagic_core.left import apart


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_it_is_measured_in_what_the_network_puts_out(kind):
    denoiser, one = ToyDenoiser(kind), sentence(pooled=False)
    other = one.with_tensors([one.tokens + 0.3])
    ends = (torch.tanh(e.tokens.sum((0, 1))) for e in (one, other))
    shifts = [denoiser.text @ end for end in ends]
    expected = (shifts[0] - shifts[1]).square().mean().sqrt().item()
    found = apart(denoiser, photograph(), one, other, seed=3, at_once=4)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_no_more_draws_pass_together_than_may(at_once):
    denoiser, one = ToyDenoiser(), sentence()
    other = one.with_tensors([tensor + 0.1 for tensor in one.tensors()])
    found = apart(denoiser, photograph(), one, other, seed=3, at_once=at_once)
    assert max(denoiser.calls) == at_once and sum(denoiser.calls) == 2 * 4
    assert found == pytest.approx(apart(denoiser, photograph(), one, other, seed=3, at_once=4))


def test_one_sentence_is_not_apart_from_itself():
    one = sentence()
    assert apart(ToyDenoiser(), photograph(), one, one, seed=3, at_once=4) == 0
