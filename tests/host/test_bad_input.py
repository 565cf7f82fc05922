"""Inputs drawn at random within and around the schema, through ComfyUI's own executor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import event
from hypothesis import strategies as st
from miniature import clip_layout

from host import given
from host.executor import Executor, Prompt, node

NAN, INF = float("nan"), float("inf")
NUMBERS = [NAN, INF, -INF, -1, 0, 1, 2, 0.5, 1e-300, 1e300, 2**64, 10**30, "", "x", "3", None, True]
STRINGS = ["", "a dog", "../../etc/passwd", "imagic/edit", "imagic/a?b", "NUL", "/etc/x", "\0", 7]


def values(model: Any) -> dict[str, dict[str, Any]]:
    """Type of a socket -> name -> what may come over it, the first of each good."""
    import comfy.nested_tensor

    plain, image = given.conditioning, given.latent
    vision, clip = clip_layout.in_host()
    tokens, options = plain()[0]
    weight = "diffusion_model.time_embed.0"
    picture = torch.rand(1, 64, 48, 3)
    return {
        "MODEL": {"model": model},
        "CONDITIONING": {
            "sentence": plain(),
            "long": plain(tokens=154),
            "unpadded": plain(tokens=9),
            "wide": plain(width=1024),
            "none at all": [],
            "two": plain() + plain(1),
            "no tokens": [[None, {}]],
            "nan": [[tokens * NAN, options]],
            "flat": [[tokens[0], options]],
            "empty": [[tokens[:, :0], options]],
            "no pooled": [[tokens, {}]],
            "nan pooled": [[tokens, {"pooled_output": options["pooled_output"] * NAN}]],
            "masked": [[tokens, options | {"attention_mask": torch.ones(1, 77)}]],
            "short mask": [[tokens, options | {"attention_mask": torch.ones(1, 5)}]],
            "object": [[tokens, options | {"thing": object()}]],
            "area": [[tokens, options | {"area": (1, 1, 0, 0)}]],
        },
        "LATENT": {
            "photograph": image(),
            "two": image(count=2),
            "one place": {"samples": torch.ones(1, 4, 1, 1)},
            "odd": {"samples": torch.ones(1, 4, 7, 5)},
            "zero": {"samples": torch.zeros(1, 4, 8, 8)},
            "nan": {"samples": torch.full((1, 4, 8, 8), NAN)},
            "channels": {"samples": torch.ones(1, 16, 8, 8)},
            "video": {"samples": torch.ones(1, 4, 3, 8, 8)},
            "no batch": {"samples": torch.ones(4, 8, 8)},
            "none": {"samples": torch.ones(0, 4, 8, 8)},
            "no samples": {},
            "streams": {"samples": comfy.nested_tensor.NestedTensor([torch.ones(1, 4, 8, 8)])},
            "masked": {**image(), "noise_mask": torch.ones(1, 64, 64)},
            "empty mask": {**image(), "noise_mask": torch.zeros(1, 64, 64)},
            "nan mask": {**image(), "noise_mask": torch.full((1, 64, 64), NAN)},
        },
        "LORA_MODEL": {
            "lora": {f"{weight}.diff_b": torch.ones(256) / 1e3},
            "empty": {},
            "of another": {"diffusion_model.nothing.diff": torch.ones(3)},
            "wrong shape": {f"{weight}.diff_b": torch.ones(3)},
            "no key of ours": {"": torch.ones(3), "x": torch.ones(())},
            "nan": {f"{weight}.diff_b": torch.full((256,), NAN)},
        },
        "LOSS_MAP": {"losses": {"loss": [0.5]}, "nan": {"loss": [NAN]}, "none": {}},
        "IMAGE": {
            "picture": picture,
            "sweep": torch.rand(3, 64, 48, 3),
            "grey": torch.rand(3, 64, 48, 1),
            "point": torch.rand(3, 1, 1, 3),
            "nan picture": picture * NAN,
            "no picture": picture[:0],
            "flat": picture[0],
        },
        "CLIP": {"text encoder": clip},
        "CLIP_VISION": {"vision encoder": vision},
        "FLOAT": {"0.5": 0.5, "number": NAN, "text": "x"},
    }


@pytest.fixture(scope="module")
def offered(comfy: ModuleType, model: Any) -> dict[str, dict[str, Any]]:
    return values(model) | {"of no type": {"none": None, "text": "text", "list": [], "dict": {}}}


@pytest.fixture(scope="module")
def executor(pack: ModuleType, offered: dict[str, dict[str, Any]]) -> Iterator[Executor]:
    import nodes as host_nodes

    flat = {f"{kind} {name}": v for kind, of_kind in offered.items() for name, v in of_kind.items()}
    made = Executor(host_nodes, flat)
    yield made
    made.close()


@pytest.fixture
def quick(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything around the training steps, and an output folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    trainers = pack.nodes.optimize_embedding, pack.nodes.finetune_model
    monkeypatch.setattr(
        trainers[0], "optimize_embedding", lambda _, photos, target, *rest: (target, [0.5])
    )
    monkeypatch.setattr(trainers[1], "finetune_model", lambda *_: [0.5])
    painter = pack.nodes.text2live
    monkeypatch.setattr(
        painter, "paint", lambda photo, *_: (painter.Layer(photo, photo[:, :1]), [0.5])
    )
    return tmp_path


def saved_only(folder: Path) -> None:
    """What there is to load is the same in each example: one whole edit and a broken one."""
    for file in folder.rglob("*.safetensors"):
        if file.name != KEPT:
            file.unlink()
    (folder / "imagic" / "broken.safetensors").write_bytes(b"broken")


def draw_input(data: st.DataObject, face: Any, offered: dict[str, dict[str, Any]]) -> Any:
    """A value or a link ["kind name", 0] for an input, mostly of the right type."""
    odd = data.draw(st.integers(0, 9), label=f"how odd {face.id}")
    of_kind = offered.get(face.io_type, {})
    if of_kind and not (face.io_type == "FLOAT" and odd > 1 and face.default is not None):
        kind = "of no type" if odd == 0 else face.io_type
        name = data.draw(st.sampled_from(list(offered[kind])), label=face.id)
        if odd > 4:
            name = next(iter(of_kind))
        return [f"{kind} {name}", 0]
    if odd > 4:
        return face.default
    if face.io_type == "COMBO":
        return data.draw(st.sampled_from([*face.options, *STRINGS]), label=face.id)
    return data.draw(st.sampled_from(NUMBERS if face.io_type in ("INT", "FLOAT") else STRINGS))


KEPT = "edit_00001_.safetensors"
SEEDS = itertools.count(1)


def good(offered: dict[str, dict[str, Any]]) -> Prompt:
    """An edit that must work; its seed is new, so that nothing of it comes from a cache."""
    text, image, lora = "CONDITIONING sentence", "LATENT photograph", "LORA_MODEL lora"
    wired = {"model": "MODEL model", "target": text, "image": image, "lora": lora}
    return {name: node("Given", name=name) for name in wired.values()} | {
        "a": node(
            "ImagicOptimizeEmbedding", steps=1, learning_rate=0.1, seed=next(SEEDS),
            **{socket: [name, 0] for socket, name in wired.items() if socket != "lora"},
        ),
        "c": node(
            "ImagicInterpolateConditioning", target=[text, 0], optimized=["a", 0], eta=0.5
        ),
        "end": node("Taken", value=["c", 0]),
        "save": node(
            "ImagicSaveEdit", model=[wired["model"], 0], optimized=["a", 0], target=[text, 0],
            lora=[lora, 0], filename_prefix="imagic/edit",
        ),
    }  # fmt: skip


@hypothesis.given(data=st.data())
def test_every_outcome_is_a_result_or_one_of_our_errors(
    pack, offered, executor, quick, caplog, data
):
    caplog.clear()
    if not list(quick.rglob(KEPT)):
        assert executor.run(good(offered)) == ("done", "")
    saved_only(quick)
    kind = data.draw(st.sampled_from(pack.nodes.NODES), label="node")
    schema = kind.define_schema()
    inputs = {
        face.id: draw_input(data, face, offered)
        for face in schema.inputs
        if not (face.optional and data.draw(st.booleans(), label=f"without {face.id}"))
    }
    links = {value[0] for value in inputs.values() if isinstance(value, list)}
    prompt = {name: node("Given", name=name) for name in links}
    prompt |= {"it": node(schema.node_id, **inputs), "end": node("Taken", value=["it", 0])}
    how, said = executor.run(prompt)
    event(f"{schema.display_name}: {how}")
    if how == "failed":
        assert said.startswith(f"{schema.display_name}: "), said
    assert "exception_during" not in said
    assert executor.run(good(offered)) == ("done", "")


@pytest.mark.parametrize("socket", ["etas", "pretrained", "original"])
def test_an_optional_wire_that_brings_nothing_is_as_none(executor, socket):
    nothing, images = "of no type none", "IMAGE sweep"
    prompt = {name: node("Given", name=name) for name in (nothing, images)}
    sheet = node("ImagicContactSheet", images=[images, 0], **{socket: [nothing, 0]})
    assert executor.run(prompt | {"it": sheet, "end": node("Taken", value=["it", 0])}) == (
        "done", ""
    )  # fmt: skip
