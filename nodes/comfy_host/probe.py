"""The first passes through a loaded model, which tell what is wrong before the long work starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ...imagic_core.changes import Difference, LowRank
from ...imagic_core.objective import Embedding
from ..errors import BadInputError
from .bypass import Product, call_layers, put_beside
from .denoiser import HostDenoiser


class DoesNotFitError(RuntimeError):
    """The model cannot be passed with this text and latent; the message is the model's own."""


REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
_KERNEL = re.compile(
    r"CUDA error|HIP error|cublas|cudnn|triton|kernel|not implemented", re.IGNORECASE
)


def check_draws(denoiser: HostDenoiser, x0: Tensor, embedding: Embedding) -> None:
    """Pass ``x0`` [1, C, ...] through the model as sampling does.

    Raises:
        DoesNotFitError: what is wired does not belong together.
        BadInputError: this model, or this machine, fails by itself.
    """
    try:
        with torch.no_grad():
            _predict(denoiser, x0, embedding)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        if error.args == ("sample_sigmas",):
            raise BadInputError(
                f"{_described(denoiser)} reads all steps of a sampling at once, as models "
                "distilled to a few steps do, so it cannot learn from single ones; connect the "
                "model that it was distilled from."
            ) from error
        if _KERNEL.search(str(error)):
            raise BadInputError(
                f"{_described(denoiser)} fails by itself, before any training, and would fail in a "
                f"KSampler, too; load it in another number format. It said: {error}"
            ) from error
        raise DoesNotFitError(str(error)) from error


def check_trains(
    denoiser: HostDenoiser, x0: Tensor, embedding: Embedding, trained: Sequence[Tensor]
) -> list[bool]:
    """Pass a gradient through the model once, to the embedding and the ``trained`` leaves.

    Finds out whether the network changes in place what autograd keeps, and lets it.

    Returns:
        Which of the leaves it has reached.

    Raises:
        BadInputError: no gradient passes, or none reaches the embedding.
    """
    leaves = embedding.with_tensors(
        tensor.detach().clone().requires_grad_() for tensor in embedding.tensors()
    )

    wanted = [*leaves.tensors(), *trained]
    reached: set[int] = set()

    def note(leaf: Tensor) -> None:
        reached.add(id(leaf))
        leaf.grad = None  # at once, so that no two of them are held

    def pass_gradient() -> None:
        output = _predict(denoiser, x0, leaves)
        if output.requires_grad:
            output.float().sum().backward()

    hooks = [leaf.register_post_accumulate_grad_hook(note) for leaf in wanted]
    try:
        try:
            pass_gradient()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            denoiser.changes_in_place = True
            pass_gradient()
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise BadInputError(
            f"{_described(denoiser)} can be sampled, but not be trained: no gradient passes it. "
            f"Disconnect the nodes that change how it computes, between it and its loader. It "
            f"said: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not any(id(leaf) in reached for leaf in leaves.tensors()):
        raise BadInputError(
            f"{_described(denoiser)} takes nothing of the sentence that could be optimised: its "
            "prediction has no gradient by the text embedding. Connect a model that reads "
            "embeddings, not words."
        )
    return [id(leaf) in reached for leaf in trained]


def peak_of(device: torch.device) -> Callable[[], int | None]:
    """From now on, what is in use of a device at most, in bytes over what is in use now.

    Only a GPU counts them: elsewhere that is None.
    """
    if device.type != "cuda":
        return lambda: None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return lambda: torch.cuda.max_memory_allocated(device) - before


@contextmanager
def watched(
    model: torch.nn.Module, changes: Mapping[str, Difference | LowRank]
) -> Iterator[set[str]]:
    """See which layers with a low-rank change are called.

    Args:
        model: the host's.
        changes: state dict key of a weight -> its change.

    Yields:
        Keys of those that were called.
    """
    called: set[str] = set()

    def note(key: str) -> Product:
        def product(_layer: torch.nn.Module, _x: Tensor, y: Tensor) -> Tensor:
            called.add(key)
            return y

        return product

    with ExitStack() as undo:
        undo.callback(call_layers())
        for key, change in changes.items():
            if isinstance(change, LowRank):
                undo.callback(put_beside(model.get_submodule(key.rpartition(".")[0]), note(key)))
        yield called


def check_sampled(
    denoiser: HostDenoiser,
    changes: Mapping[str, Difference | LowRank],
    sampled: set[str],
    trained: set[int],
) -> None:
    """See that sampling calls every layer with a low-rank change that training calls.

    Args:
        denoiser: the model.
        changes: state dict key of a weight -> its change.
        sampled: keys of the layers that sampling calls.
        trained: ``id`` of the leaves that a gradient reaches.

    Raises:
        BadInputError: it does not; what is learned there would never be seen.
    """
    for key, change in changes.items():
        if isinstance(change, LowRank) and id(change.down) in trained and key not in sampled:
            raise BadInputError(
                f"{_described(denoiser)} computes with {key} by itself when it is sampled, and not "
                "when it is trained, so that what 'lora' learns there would be lost; choose method "
                "'attention' or 'full', or load the model in float32, float16 or bfloat16."
            )


def _predict(denoiser: HostDenoiser, x0: Tensor, embedding: Embedding) -> Tensor:
    sigma = denoiser.sigmas[-1:]
    denoiser.passes = 0
    estimate = denoiser.predict(denoiser.add_noise(x0, x0, sigma), sigma, embedding)
    denoiser.passes = 0
    return estimate


def _described(denoiser: HostDenoiser) -> str:
    names = denoiser.wrappers.names()
    around = f" (with {', '.join(names)} around it)" if names else ""
    return f"'model', a {type(denoiser.model.model_config).__name__}{around},"
