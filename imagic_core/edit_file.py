"""One edit in one file: both embeddings, what the model learned, and where they come from.

The file is safetensors: no code is ever run by reading it. Its tensors are

=====================  ====================================================================
``optimized.tokens``   e_opt [1, T, W], float; ``optimized.pooled`` [1, P] where there is one
``optimized.text.N``   [1, ..., W] what a further text encoder gave, under its name N
``target.*``           e_tgt, of the same widths
``*.option.N``         tensors among the other entries of a conditioning, such as a mask
``weights.KEY``        what stage B learned, under the names that it came with
=====================  ====================================================================

and its metadata ``format``, ``version`` and ``edit``, the rest as JSON. Version 2 is version 1 with
``text.N``; a file without it still says 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .edit import Edit, Sentence
from .objective import Embedding

FORMAT, VERSIONS = "imagic-edit", ("1", "2")
MAX_HEADER = 16 * 2**20
"""Bytes; the largest that was seen, with differences for all weights of SDXL, is far smaller."""

TEXT = "text."
MAX_DEPTH = 8
"""Levels of lists in an entry of a conditioning."""

FLOATS = ("F32", "F16", "BF16")
OPTIONS = (*FLOATS, "F64", "I64", "I32", "U8", "BOOL")


class EditFileError(ValueError):
    """The file is not a whole and sound edit; the message says what was found."""


class LaterVersionError(EditFileError):
    """The file is of a version that is not known yet."""


# ---- writing --------------------------------------------------------------------------------


def write(path: Path, edit: Edit) -> None:
    """Write the edit; either all of it is there in the end, or ``path`` is as it was.

    Args:
        path: where to.
        edit: its weights are written as they are.

    Raises:
        EditFileError: a conditioning has an entry that a file cannot hold.
        OSError: the disk is full, or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    options = {}
    for name, sentence in (("target", edit.target), ("optimized", edit.optimized)):
        embedding = sentence.embedding
        tensors[f"{name}.tokens"] = embedding.tokens
        if embedding.pooled is not None:
            tensors[f"{name}.pooled"] = embedding.pooled
        tensors.update((f"{name}.{TEXT}{key}", tensor) for key, tensor in embedding.more.items())
        options[name] = {k: _packed(name, k, v, tensors) for k, v in sentence.options.items()}
    tensors.update((f"weights.{key}", tensor) for key, tensor in edit.weights.items())
    # Clones: safetensors refuses tensors that share their memory.
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSIONS[bool(edit.target.embedding.more)],
        "edit": json.dumps({"options": options, "about": edit.about}),
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:  # it reports a full disk in its own way
            raise OSError(f"{path} could not be written: {error}") from error
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _packed(name: str, key: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        place = f"{name}.option.{len(tensors)}"
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, list | tuple):
        return [_packed(name, key, v, tensors) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise EditFileError(f"entry {key!r} of {name!r} is {type(value).__name__}, which no file keeps")


# ---- reading --------------------------------------------------------------------------------


def read(path: Path) -> Edit:
    """Read an edit; nothing of the file is used before all of it was checked.

    Raises:
        LaterVersionError: a later version of the pack wrote it.
        EditFileError: it is damaged, of another kind, or at odds with itself.
        OSError: it cannot be opened.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise EditFileError("is a safetensors file, but not an edit")
        version = metadata.get("version", "")
        if version not in VERSIONS:
            # Digits of any length, of which Python turns only some into a number.
            later = version.isdecimal() and len(version) < 9 and int(version) > int(VERSIONS[-1])
            raise (LaterVersionError if later else EditFileError)(
                f"is of version {version!r:.40}, this pack reads {' and '.join(VERSIONS)}"
                + (": the pack is older than the file" if later else "")
            )
        options, about = _described(metadata.get("edit", ""))
        slices = {name: file.get_slice(name) for name in file.keys()}
        kinds = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        _check(kinds, options)
        # Clones: the tensors would be windows into a file that may change.
        tensors = {name: file.get_tensor(name).clone() for name in kinds}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise EditFileError(f"has NaN or infinity in {name!r:.80}")

    def sentence(name: str) -> Sentence:
        embedding = Embedding(
            tensors[f"{name}.tokens"], tensors.get(f"{name}.pooled"), under(f"{name}.{TEXT}")
        )
        return Sentence(embedding, _unpacked(options[name], tensors))

    def under(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}

    weights = {key: tensor.float() for key, tensor in under("weights.").items()}
    return Edit(sentence("target"), sentence("optimized"), weights, about)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    size = path.stat().st_size
    with path.open("rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if size < 8 or header > min(MAX_HEADER, size - 8):
        raise EditFileError(
            f"has {size} bytes and claims a header of {header}: it is truncated, or not a "
            "safetensors file"
        )
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise EditFileError(f"is truncated or damaged: {str(error):.200}") from error


def _described(text: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    try:
        described = json.loads(text)
        options, about = described["options"], described["about"]
        options = {name: dict(options[name]) for name in ("target", "optimized")}
        return options, dict(about)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EditFileError(f"has a damaged description ({type(error).__name__})") from error


def _check(kinds: dict[str, tuple[str, tuple[int, ...]]], options: dict[str, Any]) -> None:
    """Every tensor is one that an edit has, in a number format and shape that it can have."""
    shapes = {name: shape for name, (_, shape) in kinds.items()}
    wanted = set(_references(options))
    for name, (dtype, shape) in kinds.items():
        part, _, rest = name.partition(".")
        known = (
            (part in ("target", "optimized") and _is_text(rest))
            or (part == "weights" and rest)
            or name in wanted
        )
        if not known:
            raise EditFileError(f"has a tensor that no edit has, {name!r:.80}")
        if dtype not in (OPTIONS if name in wanted else FLOATS):
            raise EditFileError(f"has {name!r:.80} in the number format {dtype}")
        if not prod(shape):
            raise EditFileError(f"has {name!r:.80} of the empty shape {shape}")
    texts = {name.partition(".")[2] for name in kinds if _is_text(name.partition(".")[2])}
    if any(
        "pooled_output" in entries or any(TEXT + entry in texts for entry in entries)
        for entries in options.values()
    ):
        raise EditFileError("has a part of its text a second time among its options")
    missing = ({"target.tokens", "optimized.tokens"} | wanted) - set(kinds)
    if missing:
        raise EditFileError(f"lacks {min(missing)!r:.80}")
    if not any(name.startswith("weights.") for name in kinds):
        raise EditFileError("lacks the weights that were learned")
    for part in sorted(texts):
        target, optimized = (shapes.get(f"{n}.{part}") for n in ("target", "optimized"))
        axes = {"tokens": (3,), "pooled": (2,)}.get(part, range(2, MAX_DEPTH))
        for found in (target, optimized):
            if found is not None and (len(found) not in axes or found[0] != 1):
                raise EditFileError(f"has {part:.80} of shape {found}")
        # The numbers of tokens may differ.
        if _but_tokens(target) != _but_tokens(optimized):
            raise EditFileError(
                f"has {part:.80} of shape {target} in target, {optimized} in optimized"
            )


def _but_tokens(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return shape if shape is None or len(shape) < 3 else (*shape[:-2], shape[-1])


def _is_text(part: str) -> bool:
    return part in ("tokens", "pooled") or (part.startswith(TEXT) and part != TEXT)


def _references(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise EditFileError(f"has a description more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            yield str(value["tensor"])
            return
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one, depth + 1)


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[str(value["tensor"])]
        return {key: _unpacked(v, tensors) for key, v in value.items()}
    return [_unpacked(v, tensors) for v in value] if isinstance(value, list) else value
