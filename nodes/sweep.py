"""What the nodes of a sweep share: its values of eta, and the pictures drawn at them."""

from __future__ import annotations

from torch import Tensor

from .errors import BadInputError


def eta_range(start: float, stop: float, count: int) -> list[float]:
    """``count`` values of eta at equal distances, from ``start`` to ``stop``, both included."""
    if count == 1:
        return [start]
    return [round(start + (stop - start) * i / (count - 1), 4) for i in range(count)]


def sweep_pictures(socket: str, images: list[Tensor], etas: list[float]) -> list[Tensor]:
    """The pictures of each eta.

    Args:
        socket: their input, for errors.
        images: IMAGEs [B, H, W, C], one for each eta, or a single one whose batch is the etas.
        etas: as many as pictures, or none.

    Returns:
        One [B, H, W, C] for each eta; B is the number of seeds.

    Raises:
        BadInputError: the numbers of pictures differ, or their shapes.
    """
    if len(images) == 1 and len(etas) != 1:
        images = list(images[0].split(1))
    if etas and len(images) != len(etas):
        raise BadInputError(
            f"'{socket}' has {len(images)} pictures, but 'etas' has {len(etas)} values; "
            "connect both to the same Imagic Eta Sweep, the pictures through KSampler and VAE "
            "Decode."
        )
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise BadInputError(
            f"the pictures of '{socket}' have different shapes, {sizes[0]} and "
            f"{sizes[1]}; connect the pictures of one sweep."
        )
    return images
