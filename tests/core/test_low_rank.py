"""The low-rank change beside a layer, against autograd through the changed weight itself."""

from __future__ import annotations

import pytest
import torch

from imagic_core.changes import Difference, LowRank, add_product, energies, is_product, matrix_shape

LAYERS = {
    "matrix": (torch.nn.Linear(6, 8), (2, 3, 6)),
    "matrix of one vector": (torch.nn.Linear(6, 8), (6,)),
    "convolution 1": (torch.nn.Conv2d(6, 8, 1), (2, 6, 5, 4)),
    "convolution 3": (torch.nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 4)),
    "stride 2": (torch.nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 5, 4)),
    "dilated": (torch.nn.Conv2d(6, 8, 3, dilation=2, padding=2), (2, 6, 5, 4)),
    "grouped": (torch.nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 5, 4)),
    "wrapped round": (torch.nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (2, 6, 5, 4)),
    "one axis": (torch.nn.Conv1d(6, 8, 3), (2, 6, 5)),
    "three axes": (torch.nn.Conv3d(6, 8, (1, 2, 2), stride=(1, 2, 2)), (2, 6, 3, 4, 4)),
}


def changed(layer, up, down):
    """The layer with the product added to its weight."""
    difference = (up @ down).view_as(layer.weight)
    return lambda x: torch.func.functional_call(
        layer, {"weight": layer.weight.detach() + difference, "bias": layer.bias.detach()}, (x,)
    )


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_through_the_changed_weight(name: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.double()
    generator = torch.Generator().manual_seed(0)

    def some(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)

    out, into = matrix_shape(layer)
    x, up, down = some(*shape), some(out, 3), some(3, into)
    with torch.no_grad():
        weight = torch.randn(changed(layer, up, down)(x).shape, generator=generator).double()
    wanted = torch.autograd.grad((changed(layer, up, down)(x) * weight).sum(), (x, up, down))
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    y = add_product(layer, x, layer(x), up, down)
    found = torch.autograd.grad((y * weight).sum(), (x, up, down))
    torch.testing.assert_close(y, changed(layer, up, down)(x))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(add_product(layer, x, layer(x), up, down), y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pictures_may_lie_in_memory_in_any_order(layout) -> None:
    layer, shape = LAYERS["convolution 3"]
    layer = layer.float().to(memory_format=layout)
    x = torch.randn(shape).to(memory_format=layout)
    up, down = torch.randn(8, 3), torch.randn(3, 54)
    with torch.no_grad():
        y = add_product(layer, x, layer(x), up, down)
        torch.testing.assert_close(y, changed(layer, up, down)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [4, 16])
def test_it_starts_at_nothing_and_leaves_lengths(rank: int) -> None:
    layer, shape = LAYERS["matrix"]
    layer, x = layer.float(), torch.randn(shape)
    change = LowRank(layer, rank, torch.Generator().manual_seed(0))
    assert torch.equal(change(layer, x, layer(x)), layer(x))
    torch.testing.assert_close(
        torch.linalg.svdvals(change.up), torch.ones(min(rank, 8)), atol=1e-5, rtol=0
    )
    again = LowRank(layer, rank, torch.Generator().manual_seed(0))
    assert torch.equal(change.up, again.up)
    torch.nn.init.ones_(change.down)
    wanted = layer(x) + x @ change.down.T @ change.up.T
    torch.testing.assert_close(change(layer, x, layer(x)), wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_energies_are_those_of_its_patches(name: str) -> None:
    """What the weight gives out for what it takes, but for where the kernel leaves the picture."""
    layer, shape = LAYERS[name]
    layer = layer.float()
    x = torch.randn(
        (*shape[:2], *[16 for _ in shape[2:]]) if hasattr(layer, "kernel_size") else shape
    )
    y = layer(x)
    taken, made = energies(layer, x, y)
    bias = layer.bias.view(-1, *[1] * (y.ndim - 2)) if y.ndim > 3 else layer.bias
    if name == "one axis":
        bias = layer.bias[:, None]
    assert made.item() == pytest.approx((y - bias).square().sum().item(), rel=1e-4)
    if hasattr(layer, "kernel_size"):
        ones = torch.ones(1, *layer.weight.shape[1:])
        args = layer.stride, layer.padding, layer.dilation
        conv = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
        group = x.square().unflatten(1, (layer.groups, -1)).flatten(0, 1)
        expected = conv(group, ones, None, *args).sum().item()
        assert taken.item() == pytest.approx(expected, rel=0.3)
    else:
        assert taken.item() == pytest.approx(x.square().sum().item(), rel=1e-4)


def test_nothing_as_large_as_the_weight_is_made() -> None:
    """The weight and its like are the largest that there is here, by far."""
    layer = torch.nn.Linear(256, 256).requires_grad_(False)
    change = LowRank(layer, 2, torch.Generator().manual_seed(0))
    made: list[int] = []
    own = layer.weight.untyped_storage().data_ptr()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, tuple) else (found,):
                if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() != own:
                    made.append(one.untyped_storage().nbytes())
            return found

    x = torch.randn(3, 256, requires_grad=True)
    y = layer(x)
    with Watch():
        change(layer, x, y).sum().backward()
    assert made and max(made) < layer.weight.nbytes / 4
    made.clear()
    with Watch():
        torch.nn.functional.linear(x, Difference(layer.weight)(layer.weight)).sum().backward()
    assert max(made) >= layer.weight.nbytes, "the watch sees nothing"


def test_what_is_no_product_is_left_alone() -> None:
    others = (torch.nn.LayerNorm(4), torch.nn.Embedding(4, 4), torch.nn.ConvTranspose2d(4, 4, 2))
    assert not any(map(is_product, others))
    assert all(is_product(layer) for layer, _ in LAYERS.values())


def test_a_difference_in_the_place_of_its_weight_ends_as_what_was_added() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    before, change = weight.detach().clone(), Difference(weight)
    with torch.no_grad():
        change.moved.copy_(1e-2 * torch.ones(8, 8))
    with pytest.raises(ZeroDivisionError), change.in_place_of(weight) as changed:
        assert torch.equal(changed, weight + 1e-2) and changed is change.moved
        with torch.no_grad():
            changed.add_(1e-2)
        torch.testing.assert_close(change.difference, torch.full((8, 8), 2e-2))
        after = changed.detach().clone()
        assert change.is_in_place
        1 / 0  # noqa: B018
    assert torch.equal(weight, before) and not change.is_in_place
    torch.testing.assert_close(change.difference, torch.full((8, 8), 2e-2))
    assert (weight + change.difference - after).abs().max() < 1e-7
