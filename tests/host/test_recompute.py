"""Blocks that change tensors in place: gradients are those of a network that does not."""

from __future__ import annotations

import pytest
import torch


class _Block(torch.nn.Module):
    """Changes its input, what it has kept, and what it was handed in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, options):
        x *= self.weight * options["scale"]  # the input, which the caller made
        kept = x.sin()
        y = kept.exp()
        kept += 1
        z = kept * y
        y.mul_(2)  # saved by the product
        return z + y


class _Plain(_Block):
    def forward(self, x, options):
        x = x * (self.weight * options["scale"])
        kept = x.sin()
        y = kept.exp()
        return (kept + 1) * y + y * 2


class _Network(torch.nn.Module):
    def __init__(self, kind: type[_Block]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([kind(), kind()])

    def forward(self, x):
        options = {}
        x = x * 1
        for i, block in enumerate(self.blocks):
            options["scale"] = 1.0 + i
            x = block(x, options)
        options["scale"] = 100.0  # blocks must be recomputed with what they had
        return x


def _gradients(network):
    x = torch.linspace(0.1, 1.0, 5, requires_grad=True)
    network(x).square().sum().backward()
    return [x.grad, *(p.grad for p in network.parameters())]


@pytest.fixture
def expected():
    return _gradients(_Network(_Plain))


def test_autograd_alone_refuses_them():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        _gradients(_Network(_Block))


def test_recomputed_blocks_give_the_gradients_of_pure_ones(pack, expected):
    network = _Network(_Block)
    with pack.nodes.comfy_host.recompute.recomputed(network):
        torch.testing.assert_close(_gradients(network), expected)


def test_copies_before_a_change_give_the_gradients_of_pure_ones(pack, expected):
    network = _Network(_Block)
    forward = network.forward

    def copied(x):
        with pack.nodes.comfy_host.in_place.copied_before_change():
            return forward(x)

    network.forward = copied
    torch.testing.assert_close(_gradients(network), expected)


class _Chance(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, options):
        return x * self.weight * torch.rand(5) * options["scale"]


def test_recomputed_blocks_draw_the_same_random_numbers(pack):
    network = _Network(_Chance)
    torch.manual_seed(3)
    expected = _gradients(network)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with pack.nodes.comfy_host.recompute.recomputed(network):
        torch.testing.assert_close(_gradients(network), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_change_that_nobody_saw_is_an_error_and_no_wrong_gradient(pack):
    x = torch.ones(3, requires_grad=True)
    with pack.nodes.comfy_host.in_place.copied_before_change():
        y = x * 2
        z = y * y
    with torch.no_grad():
        y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_blocks_get_their_own_forward_back(pack):
    network = _Network(_Plain)
    own = network.blocks[0].forward = network.blocks[0].forward
    with pack.nodes.comfy_host.recompute.recomputed(network):
        assert network.blocks[0].forward is not own
    assert vars(network.blocks[0])["forward"] is own
    assert "forward" not in vars(network.blocks[1])


class _Packed(torch.Tensor):
    """As GGUF's: made of more than a tensor, and asked for the plain one by `torch.Tensor`."""

    def __new__(cls, data, *, kind):
        return super().__new__(cls, data)

    def __init__(self, data, *, kind):
        super().__init__()
        self.kind = kind


@pytest.mark.parametrize("requires_grad", [False, True])
def test_tensors_of_a_class_of_their_own_become_plain_as_elsewhere(pack, requires_grad):
    packed = _Packed(torch.ones(2, 2), kind="Q8_0")
    x = torch.ones(2, requires_grad=requires_grad)
    with pack.nodes.comfy_host.in_place.copied_before_change():
        plain = torch.Tensor(packed * 2)
        assert type(plain) is torch.Tensor
        assert (plain @ x).tolist() == [4.0, 4.0]
