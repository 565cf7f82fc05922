"""What users met: a full disk, a strength set twice, a model quantised since, names by a wire."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from host import given


def lora_of(nodes, model, seed: int, method: str = "lora") -> dict[str, torch.Tensor]:
    """As if it had been trained."""
    lora = nodes.host.changes_to_lora(nodes.host.new_changes(model, method, 4, seed))
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor if key.endswith((".alpha", "lora_up.weight"))
        else 2e-3 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in lora.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def learned(nodes, model):
    return SimpleNamespace(
        target=given.conditioning(),
        optimized=given.conditioning(1),
        lora=lora_of(nodes, model, 0),
        latent=given.latent(),
    )


@pytest.fixture
def output(comfy, tmp_path, monkeypatch):
    import folder_paths

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return folder


def save(nodes, model, learned, prefix="imagic/edit"):
    with torch.inference_mode():
        return nodes.nodes["ImagicSaveEdit"].execute(
            model, learned.optimized, learned.target, learned.lora, prefix
        )


# ---- strength -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "attention", "full"])
def test_the_strength_of_a_model_that_has_the_edit_is_replaced(nodes, model, learned, method):
    lora, other = (lora_of(nodes, model, seed, method) for seed in (0, 1))

    def loss(start, *strengths):
        (tuned,) = nodes.call("ImagicFinetuneStrength", start, lora, *strengths)
        return nodes.loss(tuned, learned.optimized, learned.latent, 2)

    plain, once = (loss(model, *[s] * 3) for s in (0.0, 1.0))
    assert once != pytest.approx(plain, rel=1e-3)
    tuned = nodes.host.apply_lora(model, lora)
    half = nodes.call("ImagicFinetuneStrength", tuned, lora, 0.5, 0.5, 0.5)[0]
    for start in (tuned, half, nodes.host.apply_lora(tuned, lora)):
        assert loss(start, 1.0, 1.0, 1.0) == pytest.approx(once, rel=1e-6)
        assert loss(start, 0.0, 0.0, 0.0) == pytest.approx(plain, rel=1e-6)
    assert nodes.host.has_lora(tuned, lora), "what came in keeps it"
    # Taken away also where the weights are patched at the moment, as after sampling.
    for start, expected in ((tuned, once), (nodes.host.without_lora(tuned, lora), plain)):
        found = nodes.loss(start, learned.optimized, learned.latent, 2)
        assert found == pytest.approx(expected, rel=1e-6)
    # Another edit is not this one's to replace.
    first = nodes.host.apply_lora(model, other)
    alone = nodes.loss(first, learned.optimized, learned.latent, 2)
    both = nodes.host.apply_lora(first, lora)
    assert loss(both, 0.0, 0.0, 0.0) == pytest.approx(alone, rel=1e-6)
    assert not nodes.host.has_lora(first, lora)


def test_the_edit_is_known_again_by_what_was_trained_after_it_was_saved(
    nodes, model, learned, output
):
    saved = save(nodes, model, learned).result[0]
    (off,) = nodes.call("ImagicFinetuneStrength", saved, learned.lora, 0.0, 0.0, 0.0)
    (plain,) = nodes.call("ImagicFinetuneStrength", model, learned.lora, 0.0, 0.0, 0.0)
    a, b = (nodes.loss(m, learned.optimized, learned.latent, 2) for m in (off, plain))
    assert a == pytest.approx(b, rel=1e-6)


def test_weights_that_no_edit_moves_are_not_taken_for_the_edit(nodes, model):
    lora = lora_of(nodes, model, 0, "full")
    key = next(iter(lora))
    lora[key] = torch.zeros_like(lora[key])
    tuned = nodes.host.apply_lora(model, {key: lora[key]})
    assert not nodes.host.has_lora(tuned, lora)


# ---- disks ----------------------------------------------------------------------------------


@contextmanager
def small_files_only(size: int):
    """The system refuses to write larger files, as a full disk does."""
    resource = pytest.importorskip("resource", reason="limits of files are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fault", ["full", "not a folder", "too long"])
def test_an_edit_that_cannot_be_saved_still_comes_out(nodes, model, learned, output, fault, caplog):
    prefix = "/".join(["a" * 200] * 30) if fault == "too long" else "imagic/edit"
    if fault == "not a folder":
        (output / "imagic").write_text("a file in its place")
    with caplog.at_level(logging.WARNING, "comfyui-imagic"):
        if fault == "full":
            with small_files_only(64 * 1024):
                out = save(nodes, model, learned)
        else:
            out = save(nodes, model, learned, prefix)
    tuned, optimized, target, told = out.result
    assert told.startswith("Not saved: ") and "nothing is trained again" in told
    assert out.ui["text"] == (told,) and told in caplog.text
    assert optimized is learned.optimized and target is learned.target
    assert nodes.host.has_lora(tuned, nodes.host.rounded(learned.lora))
    assert [p.suffix for p in output.rglob("*") if p.is_file() and p.suffix] == []
    if fault == "full":
        assert save(nodes, model, learned).result[3] == "imagic/edit_00001_.safetensors [output]"


def test_a_bad_name_that_comes_by_a_wire_loses_nothing(nodes, model, learned, output, caplog):
    out = save(nodes, model, learned, "../evil")
    assert out.result[3] == "imagic/edit_00001_.safetensors [output]"
    assert "saved as imagic/edit instead" in out.ui["text"][1] and "'../evil'" in caplog.text
    assert [p.name for p in output.parent.rglob("*.safetensors")] == ["edit_00001_.safetensors"]


# ---- what a loaded edit says ----------------------------------------------------------------


def test_an_edit_of_a_later_version_says_that_the_pack_is_older(nodes, model, learned, output):
    name = save(nodes, model, learned).result[3]
    file = output / name.split(" ")[0]
    with safe_open(file, "pt") as opened:
        tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    save_file(tensors, file, metadata | {"version": "3"})
    with pytest.raises(ValueError, match=r"the pack is older than the file\. Update") as refused:
        nodes.call("ImagicLoadEdit", model, name)
    assert "save it again" not in str(refused.value)


def test_the_same_model_quantised_is_told_from_another(
    nodes, model, learned, output, narrow_checkpoint, tmp_path
):
    from families.tiny import build_narrow

    name = save(nodes, model, learned).result[3]
    other = build_narrow(tmp_path / "other.safetensors", seed=1)
    expected = {
        (narrow_checkpoint, torch.float16): None,
        (narrow_checkpoint, torch.float8_e4m3fn): "seems to be the one",
        (narrow_checkpoint, torch.float8_e5m2): "seems to be the one",
        (other, torch.float8_e4m3fn): "is not the one",
        (other, torch.float16): "is not the one",
    }
    for (checkpoint, dtype), warning in expected.items():
        info = nodes.call("ImagicLoadEdit", given.load(checkpoint, dtype=dtype), name)[4]
        assert (warning or "Warning") in info.splitlines()[0] if warning else "Warning" not in info
        assert "base_sample" not in info
    coarse = given.load(narrow_checkpoint, dtype=torch.float8_e4m3fn)
    name = save(nodes, coarse, learned).result[3]
    assert "seems to be the one" in nodes.call("ImagicLoadEdit", model, name)[4]


# ---- numbers and choices --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "given", "message"),
    [
        ("ImagicInterpolateConditioning", {"eta": float("nan")}, "'eta' is nan; it takes a number"),
        ("ImagicInterpolateConditioning", {"eta": float("-inf")}, "'eta' is -inf"),
        ("ImagicInterpolateConditioning", {"eta": "0.5"}, "'eta' is '0.5'"),
        ("ImagicProjectConditioning", {"edit": float("inf")}, "'edit' is inf"),
        ("ImagicEtaSweep", {"count": 0}, "'count' is 0; it takes a number from 1 to 64"),
        ("ImagicEtaSweep", {"start": float("nan")}, "'start' is nan"),
        ("ImagicFinetuneStrength", {"middle": float("nan")}, "'middle' is nan"),
        (
            "ImagicFinetuneModel",
            {"method": "../../etc"},
            "'method' is '../../etc'; choose one of: lora",
        ),
        ("ImagicFinetuneModel", {"learning_rate": float("nan")}, "'learning_rate' is nan"),
        ("ImagicFinetuneModel", {"rank": float("inf")}, "'rank' is inf"),
        ("ImagicOptimizeEmbedding", {"steps": -1}, "'steps' is -1"),
        ("ImagicOptimizeEmbedding", {"steps": 10**400}, "'steps' is 1000"),
        ("ImagicOptimizeEmbedding", {"save_memory": None, "recipe": "own"}, "'recipe' is 'own'"),
        ("ImagicOptimizeEmbedding", {"model": None}, "'model' got NoneType, not MODEL"),
        ("ImagicOptimizeEmbedding", {"image": torch.ones(1, 8, 8, 3)}, "'image' got Tensor"),
    ],
)
def test_what_no_face_offers_is_refused_with_a_sentence(
    nodes, model, learned, node, given, message
):
    wired = {
        "model": model,
        "target": learned.target,
        "optimized": learned.optimized,
        "lora": learned.lora,
        "image": learned.latent,
    }
    face = nodes.nodes[node].define_schema()
    inputs = {i.id: wired.get(i.id, getattr(i, "default", None)) for i in face.inputs} | given
    with pytest.raises(ValueError, match=f"^{face.display_name}: {message}"):
        nodes.call(node, **inputs)


def test_scores_refuse_etas_that_are_no_numbers(nodes):
    pictures = [torch.rand(1, 16, 16, 3) for _ in range(3)]
    with pytest.raises(ValueError, match="^Imagic Score Edits: 'etas' is nan; it takes a finite"):
        nodes.call("ImagicScoreEdits", pictures, pictures[:1], [0.0, 0.5, float("nan")])
