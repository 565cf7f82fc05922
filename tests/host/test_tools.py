"""The nodes beside the three: sweep, sheet, edits in files, scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniature import families
from safetensors import safe_open
from safetensors.torch import save_file

from host import imagic


@pytest.fixture(scope="module")
def nodes(pack):
    return imagic.Pack(pack)


@pytest.fixture(scope="module")
def model(comfy, tiny_checkpoint):
    return imagic.load(tiny_checkpoint)


def flat(value: float, count: int = 1, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    """An IMAGE of one grey."""
    return torch.full((count, *size, 3), value)


# ---- eta sweep ------------------------------------------------------------------------------


def test_a_sweep_is_equation_4_at_each_eta(nodes):
    target, optimized = imagic.conditioning(0), imagic.conditioning(1)
    conditionings, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.0, 1.0, 6)
    assert etas == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(conditionings) == 6
    for conditioning, eta in zip(conditionings, etas, strict=True):
        (expected,) = nodes.interpolate(target, optimized, eta)
        assert torch.equal(conditioning[0][0], expected[0][0])
        pooled = [c[0][1]["pooled_output"] for c in (conditioning, expected)]
        assert torch.equal(*pooled)


def test_a_sweep_of_one_is_its_start(nodes):
    target, optimized = imagic.conditioning(0), imagic.conditioning(1)
    _, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.7, 1.0, 1)
    assert etas == [0.7]


def test_a_sweep_refuses_another_sentences_shape(nodes):
    with pytest.raises(ValueError, match="Eta Sweep: 'target' and 'optimized' do not match"):
        nodes.call(
            "ImagicEtaSweep", imagic.conditioning(tokens=154), imagic.conditioning(), 0, 1, 2
        )


# ---- contact sheet --------------------------------------------------------------------------


def places(sheet: torch.Tensor, value: float) -> np.ndarray:
    """Where a sheet shows one grey: [n, 2] rows and columns."""
    return np.argwhere((sheet[0] - value).abs().amax(-1).numpy() < 0.01)


def test_a_sheet_shows_every_picture_once_in_order(nodes):
    etas = [0.0, 0.5, 1.0]
    tuned = [flat(v) for v in (0.2, 0.4, 0.6)]
    plain = [flat(v) for v in (0.3, 0.5, 0.7)]
    (sheet,) = nodes.call("ImagicContactSheet", tuned, etas, plain, [flat(0.8)], [320])
    found = {v: places(sheet, v) for v in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)}
    assert all(len(p) >= 64 * 48 for p in found.values())
    left = {v: p[:, 1].mean() for v, p in found.items()}
    top = {v: p[:, 0].mean() for v, p in found.items()}
    assert left[0.8] < left[0.2] < left[0.4] < left[0.6]
    assert left[0.2] == pytest.approx(left[0.3], abs=1)
    assert top[0.3] < top[0.8] < top[0.2] and top[0.2] == pytest.approx(top[0.6], abs=1)


def test_the_seeds_of_a_batch_are_rows(nodes):
    pictures = [torch.cat([flat(0.2), flat(0.4)]), torch.cat([flat(0.6), flat(0.8)])]
    (sheet,) = nodes.call("ImagicContactSheet", pictures, [0.0, 1.0])
    top, left = {}, {}
    for value in (0.2, 0.4, 0.6, 0.8):
        top[value], left[value] = places(sheet, value).mean(0)
    assert top[0.4] > top[0.2] + 60 and left[0.6] > left[0.2] + 45
    assert left[0.4] == pytest.approx(left[0.2], abs=1)
    assert top[0.8] == pytest.approx(top[0.4], abs=1)


def test_one_batch_may_be_the_whole_sweep(nodes):
    one = torch.cat([flat(0.2), flat(0.4)])
    (sheet,) = nodes.call("ImagicContactSheet", [one], [0.0, 1.0])
    (other,) = nodes.call("ImagicContactSheet", [one[:1], one[1:]], [0.0, 1.0])
    assert torch.equal(sheet, other)


def test_labels_tell_the_etas_apart(nodes):
    pictures = [flat(0.5), flat(0.5)]
    (sheet,) = nodes.call("ImagicContactSheet", pictures, [0.0, 1.0])
    (other,) = nodes.call("ImagicContactSheet", pictures, [0.0, 0.9])
    assert sheet.shape != other.shape or not torch.equal(sheet, other)


def test_large_pictures_are_reduced_to_the_tile(nodes):
    (sheet,) = nodes.call("ImagicContactSheet", [flat(0.5, size=(640, 320))], tile_size=[64])
    assert len(places(sheet, 0.5)) == pytest.approx(64 * 32, rel=0.1)


@pytest.mark.parametrize(
    ("images", "etas", "pretrained", "message"),
    [
        ([0.1, 0.2], [0.0], None, "'images' has 2 pictures, but 'etas' has 1"),
        ([0.1, 0.2], [0.0, 1.0], [0.1, 0.2, 0.3], "'pretrained' has 3 pictures"),
        ([0.1, 0.2], None, [0.1, 0.2, 0.3], "'pretrained' has 3 pictures of 1 seeds"),
    ],
)
def test_a_sheet_refuses_pictures_that_do_not_match(nodes, images, etas, pretrained, message):
    images, pretrained = ([flat(v) for v in g] if g else None for g in (images, pretrained))
    with pytest.raises(ValueError, match=f"Imagic Contact Sheet: {message}"):
        nodes.call("ImagicContactSheet", images, etas, pretrained)


def test_a_sheet_refuses_pictures_of_different_sizes(nodes):
    with pytest.raises(ValueError, match="different shapes"):
        nodes.call("ImagicContactSheet", [flat(0.1), flat(0.2, size=(32, 32))])


# ---- edit files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(nodes, model):
    """Stages A and B, run once."""
    target, latent = imagic.conditioning(), imagic.latent()
    optimized, loss_a = nodes.optimize(model, target, latent, 3, 1e-2, 0)
    tuned, lora, loss_b = nodes.finetune(model, optimized, latent, "lora", 4, 1e-3, 0)
    return SimpleNamespace(
        target=target,
        optimized=optimized,
        latent=latent,
        tuned=tuned,
        lora=lora,
        losses=(loss_a, loss_b),
    )


@pytest.fixture
def output(comfy, tmp_path, monkeypatch) -> Path:
    """The host's output folder, an empty one; its models folder beside it."""
    import folder_paths

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return folder


def save(nodes, model, learned, **kwargs):
    return nodes.call(
        "ImagicSaveEdit", model, learned.optimized, learned.target, learned.lora, **kwargs
    )


def assert_same_conditioning(a, b):
    assert torch.equal(a[0][0], b[0][0]) and a[0][0].dtype == b[0][0].dtype
    assert a[0][1].keys() == b[0][1].keys()
    assert torch.equal(a[0][1]["pooled_output"], b[0][1]["pooled_output"])


def test_what_is_saved_is_loaded(nodes, model, learned, output):
    saved, optimized, target, name = save(
        nodes,
        model,
        learned,
        image=learned.latent,
        optimized_loss=learned.losses[0],
        model_loss=learned.losses[1],
    )
    assert name == "imagic/edit_00001_.safetensors [output]"
    loaded, e_opt, e_tgt, lora, info = nodes.call("ImagicLoadEdit", model, name)
    assert_same_conditioning(e_opt, learned.optimized)
    assert_same_conditioning(e_tgt, learned.target)
    assert_same_conditioning(optimized, learned.optimized)
    assert_same_conditioning(target, learned.target)
    args = (learned.optimized, learned.latent, 4)
    assert nodes.loss(loaded, *args) == nodes.loss(saved, *args)
    assert nodes.loss(loaded, *args) < nodes.loss(model, *args) * 0.998
    assert nodes.loss(loaded, *args) == pytest.approx(nodes.loss(learned.tuned, *args), rel=1e-4)
    assert lora.keys() == learned.lora.keys()
    assert "Warning" not in info and "4 steps" in info and "SD15" in info


def test_each_save_is_a_file_of_its_own(nodes, model, learned, output):
    first, second = (save(nodes, model, learned)[3] for _ in range(2))
    assert first != second
    files = sorted(p.name for p in (output / "imagic").iterdir())
    assert files == ["edit_00001_.safetensors", "edit_00002_.safetensors"]


def test_the_list_has_both_folders_and_nothing_else(nodes, model, learned, output):
    name = save(nodes, model, learned)[3]
    models = output.parent / "models" / "imagic" / "dogs"
    models.mkdir(parents=True)
    (models / "mine.safetensors").write_bytes((output / name.split(" ")[0]).read_bytes())
    (output / "elsewhere.safetensors").write_bytes(b"")
    (output / "imagic" / "picture.png").write_bytes(b"")
    schema = nodes.nodes["ImagicLoadEdit"].define_schema()
    (combo,) = (i for i in schema.inputs if i.id == "edit")
    assert combo.options == [name, "dogs/mine.safetensors"]
    nodes.call("ImagicLoadEdit", model, "dogs/mine.safetensors")


def test_another_sentence_can_be_wired(nodes, model, learned, output):
    name = save(nodes, model, learned)[3]
    other = imagic.conditioning(seed=7)
    _, e_opt, e_tgt, _, _ = nodes.call("ImagicLoadEdit", model, name, other)
    assert e_tgt is other
    assert_same_conditioning(e_opt, learned.optimized)
    with pytest.raises(ValueError, match=r"'target' has the shape .*154.* the edit has .*77"):
        nodes.call("ImagicLoadEdit", model, name, imagic.conditioning(tokens=154))


def test_another_base_model_is_warned_of_by_name(
    nodes, model, learned, output, comfy, tmp_path, caplog
):
    from miniature.tiny import build_tiny

    name = save(nodes, model, learned)[3]
    other = imagic.load(build_tiny(tmp_path / "other.safetensors", seed=1))
    info = nodes.call("ImagicLoadEdit", other, name)[4]
    assert info.startswith("Warning: 'model' is not the one") and "SD15" in info.splitlines()[0]
    assert "is not the one" in caplog.text


def test_the_hash_of_the_base_is_of_the_model_alone(nodes, model, learned, tiny_checkpoint):
    base_hash = nodes.module.nodes.save_edit.base_hash
    before = base_hash(model)
    nodes.sampled_loss(learned.tuned, learned.optimized, learned.latent, 1)  # patched in place
    assert base_hash(model) == before
    assert base_hash(imagic.load(tiny_checkpoint, dtype=torch.bfloat16)) == before
    assert base_hash(learned.tuned) != before


def test_the_tuned_model_is_no_base(nodes, learned, output):
    with pytest.raises(ValueError, match="Save Edit: 'model' is the fine-tuned model"):
        save(nodes, learned.tuned, learned)
    assert not list(output.rglob("*.safetensors"))


def test_differences_are_kept_exactly(nodes, model, learned, output):
    tuned, lora, _ = nodes.finetune(
        model, learned.optimized, learned.latent, "attention", 2, 1e-4, 0
    )
    learned = SimpleNamespace(**{**vars(learned), "lora": lora})
    with pytest.raises(ValueError, match="is the fine-tuned model"):
        save(nodes, tuned, learned)
    name = save(nodes, model, learned)[3]
    kept = nodes.call("ImagicLoadEdit", model, name)[3]
    assert all(torch.equal(kept[key], lora[key]) for key in lora)


def test_the_output_folder_cannot_be_left(nodes, model, learned, output):
    with pytest.raises(Exception, match="outside the output folder"):
        save(nodes, model, learned, filename_prefix="../evil/edit")
    assert not list(output.parent.rglob("*.safetensors"))


@pytest.fixture
def outside(nodes, model, learned, output):
    """A sound edit where no edit may be read from."""
    save(nodes, model, learned, filename_prefix="elsewhere/edit")
    return output / "elsewhere" / "edit_00001_.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere/edit_00001_.safetensors [output]",
        "imagic/../elsewhere/edit_00001_.safetensors [output]",
        "elsewhere/edit_00001_.safetensors [output]",
        "{absolute}",
        "",
    ],
)
def test_a_name_that_leaves_the_folders_is_refused(nodes, model, outside, name, monkeypatch):
    monkeypatch.setattr(nodes.module.imagic_core.edit_file, "read", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="Load Edit: 'edit' names .* not among the edit files"):
        nodes.call("ImagicLoadEdit", model, name.format(absolute=outside))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "huge header", "other shapes"])
def test_a_bad_file_is_refused_and_nothing_else_happens(
    nodes, model, learned, output, damage, monkeypatch
):
    name = save(nodes, model, learned)[3]
    file = output / name.split(" ")[0]
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "huge header":
        file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    elif damage == "foreign":
        save_file(learned.lora, file)
    else:
        with safe_open(file, "pt") as opened:
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata()
        key = next(k for k in tensors if k.endswith(".lora_up.weight"))
        tensors[key] = torch.zeros(3, 16)
        save_file(tensors, file, metadata)
    monkeypatch.setattr(nodes.host, "apply_lora", lambda *_: pytest.fail("it was applied"))
    with pytest.raises(ValueError, match="Imagic Load Edit: 'edit'"):
        nodes.call("ImagicLoadEdit", model, name)


def test_an_edit_of_another_architecture_is_refused_by_name(nodes, model, learned, output, comfy):
    family = families.FAMILIES["sd3"]
    path = family.build(output / "flow.safetensors")
    import comfy.sd

    with torch.inference_mode():
        flow = comfy.sd.load_diffusion_model(str(path))
    name = save(nodes, model, learned)[3]
    with pytest.raises(ValueError, match="does not fit 'model': .* It was learned on SD15"):
        nodes.call("ImagicLoadEdit", flow, name)


def test_a_changed_file_is_read_again(nodes, model, learned, output):
    name = save(nodes, model, learned)[3]
    node = nodes.nodes["ImagicLoadEdit"]
    before = node.fingerprint_inputs(edit=name, model=None)
    assert node.fingerprint_inputs(edit=name, model=None) == before
    file = output / name.split(" ")[0]
    file.write_bytes(file.read_bytes() + b" ")
    assert node.fingerprint_inputs(edit=name, model=None) != before


def test_the_graph_tells_where_an_edit_comes_from(nodes):
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
        "2": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "a sitting dog", "clip": ["1", 1]},
        },
        "3": {"class_type": "ImagicOptimizeEmbedding", "inputs": {"steps": 5, "model": ["1", 0]}},
        "4": {"class_type": "ImagicFinetuneModel", "inputs": {"seed": 3, "model": ["9", 0]}},
        "5": {
            "class_type": "ImagicSaveEdit",
            "inputs": {
                "model": ["9", 0],
                "target": ["2", 0],
                "optimized": ["3", 0],
                "lora": ["4", 1],
            },
        },
        "9": {"class_type": "ModelSamplingSD3", "inputs": {"shift": 3.0, "model": ["1", 0]}},
    }
    learned_from = nodes.module.nodes.save_edit.learned_from
    assert learned_from(prompt, "5") == {
        "ImagicOptimizeEmbedding": {"steps": 5},
        "ImagicFinetuneModel": {"seed": 3},
        "sentence": "a sitting dog",
        "base_name": "sd.safetensors",
    }
    assert learned_from(None, None) == {} == learned_from(prompt, "77")
    prompt["1"]["inputs"]["model"] = ["9", 0]  # a circle
    assert "base_name" not in learned_from(prompt, "5")
