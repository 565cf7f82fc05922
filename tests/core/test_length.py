"""Sentences of different numbers of tokens, brought to one."""

from __future__ import annotations

import pytest
import torch

from imagic_core.interpolate import common_length, lengthened


def attention(query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ tokens.mT, -1) @ tokens


@pytest.mark.parametrize(("first", "second"), [(77, 154), (154, 231)])
def test_repeated_sections_of_clip_are_the_same_to_attention(first, second):
    length = common_length(first, second)
    assert length % first == length % second == 0
    query = torch.randn(1, 6, 8)
    for count in (first, second):
        tokens = torch.randn(1, count, 8)
        longer = lengthened(tokens, length)
        assert longer.shape == (1, length, 8)
        torch.testing.assert_close(attention(query, longer), attention(query, tokens))


@pytest.mark.parametrize(("first", "second"), [(9, 16), (256, 300), (77, 90), (154, 254)])
def test_other_text_goes_on_with_its_last_token(first, second):
    assert common_length(first, second) == common_length(second, first) == second
    tokens = torch.randn(1, first, 8)
    longer = lengthened(tokens, second)
    assert longer.shape == (1, second, 8) and torch.equal(longer[:, :first], tokens)
    assert (longer[:, first:] == tokens[:, -1:]).all()
    assert torch.equal(lengthened(longer, second), longer)
