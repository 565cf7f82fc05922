"""Imagic Save Edit and Imagic Load Edit: edits in files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import kinds
from families.tiny import NARROW_UNETS
from machine.host_process import serve
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from talk.api import PromptRejected, node
from talk.client import Client, PromptFailed

from host import given


@pytest.fixture(scope="module")
def learned(nodes, model):
    """Stages A and B, run once."""
    target, latent = given.conditioning(), given.latent()
    optimized, loss_a = nodes.optimize(model, target, latent, 3, 1e-2, 0)
    tuned, lora, loss_b = nodes.finetune(model, optimized, latent, "lora", 4, 4e-2, 0)
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
    # The target of what was learned is the file's own.
    assert {*a[0][1]} - {"imagic_origin"} == {*b[0][1]} - {"imagic_origin"}
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
    assert "imagic_origin" not in e_opt[0][1]
    assert_same_conditioning(e_tgt, learned.target)
    assert_same_conditioning(optimized, learned.optimized)
    assert_same_conditioning(target, learned.target)
    args = (learned.optimized, learned.latent, 4)
    assert nodes.loss(loaded, *args) == pytest.approx(nodes.loss(saved, *args), rel=1e-6)
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
    other = given.conditioning(seed=7)
    _, e_opt, e_tgt, _, _ = nodes.call("ImagicLoadEdit", model, name, other)
    assert e_tgt is other
    assert_same_conditioning(e_opt, learned.optimized)
    longer = given.conditioning(tokens=154)
    _, e_opt, e_tgt, _, info = nodes.call("ImagicLoadEdit", model, name, longer)
    assert e_tgt is longer and e_opt[0][0].shape[1] == 77
    assert info.startswith("'target' has 154 tokens, the edit 77: both are continued to 154")
    assert nodes.interpolate(e_tgt, e_opt, 0.5)[0][0][0].shape[1] == 154
    with pytest.raises(ValueError, match=r"'target' has the shape .*1024.* the edit has .*768"):
        nodes.call("ImagicLoadEdit", model, name, given.conditioning(width=1024))


def test_another_base_model_is_warned_of_by_name(
    nodes, model, learned, output, comfy, tmp_path, caplog
):
    from families.tiny import build_narrow

    name = save(nodes, model, learned)[3]
    other = given.load(build_narrow(tmp_path / "other.safetensors", seed=1))
    info = nodes.call("ImagicLoadEdit", other, name)[4]
    assert info.startswith("Warning: 'model' is not the one") and "SD15" in info.splitlines()[0]
    assert "is not the one" in caplog.text


def test_the_hash_of_the_base_is_of_the_model_alone(nodes, model, learned, narrow_checkpoint):
    base_hash = nodes.host.base_hash
    before = base_hash(model)
    nodes.sampled_loss(learned.tuned, learned.optimized, learned.latent, 1)  # patched in place
    assert base_hash(model) == before
    assert base_hash(given.load(narrow_checkpoint, dtype=torch.bfloat16)) == before
    assert base_hash(learned.tuned) != before


def test_the_tuned_model_is_no_base(nodes, learned, output):
    with pytest.raises(ValueError, match="Save Edit: 'model' is the fine-tuned model"):
        save(nodes, learned.tuned, learned)
    assert not list(output.rglob("*.safetensors"))


def test_differences_are_kept_exactly(nodes, model, learned, output):
    tuned, lora, _ = nodes.finetune(
        model, learned.optimized, learned.latent, "attention", 2, 1e-2, 0
    )
    learned = SimpleNamespace(**{**vars(learned), "lora": lora})
    with pytest.raises(ValueError, match="is the fine-tuned model"):
        save(nodes, tuned, learned)
    name = save(nodes, model, learned)[3]
    kept = nodes.call("ImagicLoadEdit", model, name)[3]
    assert all(torch.equal(kept[key], lora[key]) for key in lora)


@pytest.fixture
def outside(nodes, model, learned, output):
    """A sound edit where no edit may be read from."""
    name = save(nodes, model, learned)[3]
    (output / "elsewhere").mkdir()
    return (output / name.split(" ")[0]).rename(output / "elsewhere" / "edit_00001_.safetensors")


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
    monkeypatch.setattr(nodes.core.edit_file, "read", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="Load Edit: 'edit' has no file to choose"):
        nodes.call("ImagicLoadEdit", model, name.format(absolute=outside))


def test_a_file_that_is_not_there_is_named_beside_how_many_there_are(nodes, model, learned, output):
    node = nodes.nodes["ImagicLoadEdit"]
    save(nodes, model, learned)
    # The host refuses without a reason that it shows; the node gives one.
    assert node.validate_inputs("gone.safetensors") is True
    said = "'gone.safetensors', which is not among the 1 edit files; press R"
    with pytest.raises(ValueError, match=f"Imagic Load Edit: 'edit' names {said}"):
        nodes.call("ImagicLoadEdit", model, "gone.safetensors")


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
    family = kinds.FAMILIES["sd3"]
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
    from comfy_execution.graph import DynamicPrompt

    learned_from = nodes.module.nodes.graph.learned_from
    graph = DynamicPrompt(prompt)
    assert learned_from(graph, "5") == {
        "ImagicOptimizeEmbedding": {"steps": 5},
        "ImagicFinetuneModel": {"seed": 3},
        "sentence": "a sitting dog",
        "base_name": "sd.safetensors",
    }
    assert learned_from(None, None) == {} == learned_from(graph, "77")
    prompt["5"]["inputs"]["target"] = given.conditioning()  # as a node may that adds others
    assert "sentence" not in learned_from(graph, "5")
    prompt["1"]["inputs"]["model"] = ["9", 0]  # a circle
    assert "base_name" not in learned_from(graph, "5")


def drawing(model, optimized, target, prefix: str):
    """A sweep of two by one KSampler, its pictures saved."""
    return {
        "empty": node("CLIPTextEncode", text="", clip=["load", 1]),
        "sweep": node(
            "ImagicEtaSweep", target=target, optimized=optimized, start=0.5, stop=1.0, count=2
        ),
        "sample": node(
            "KSampler",
            model=model,
            positive=["sweep", 0],
            negative=["empty", 0],
            latent_image=["image", 0],
            seed=3,
            steps=2,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "sheet": node("ImagicContactSheet", images=["decode", 0], etas=["sweep", 1]),
        "pictures": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
        "one": node("SaveImage", images=["sheet", 0], filename_prefix=f"{prefix}_sheet"),
    }


def test_a_loaded_edit_draws_the_same_picture_in_a_fresh_process(
    server, client, comfyui_folder, narrow_checkpoint, tmp_path
):
    photograph = tmp_path / "photograph.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(photograph)

    def common(client):
        return {
            "load": node("CheckpointLoaderSimple", ckpt_name=narrow_checkpoint.name),
            "photograph": node("LoadImage", image=client.upload(photograph)),
            "image": node("VAEEncode", pixels=["photograph", 0], vae=["load", 2]),
        }

    saving = common(client) | drawing(["save", 0], ["save", 1], ["save", 2], "saved")
    saving["text"] = node("CLIPTextEncode", text="a sitting dog", clip=["load", 1])
    training = {"model": ["load", 0], "image": ["image", 0], "seed": 0, "batch_size": 1}
    saving["a"] = node("ImagicOptimizeEmbedding", target=["text", 0], **training)
    saving["b"] = node("ImagicFinetuneModel", optimized=["a", 0], method="lora", **training)
    saving["a"]["inputs"].update(steps=2, learning_rate=1e-2)
    saving["b"]["inputs"].update(steps=3, learning_rate=4e-2)
    saving["save"] = node(
        "ImagicSaveEdit",
        model=["load", 0],
        optimized=["a", 0],
        target=["text", 0],
        lora=["b", 1],
        filename_prefix="imagic/fresh",
    )
    result = client.run(saving)
    saved = client.images(result, "pictures")
    assert len(saved) == 2 and not np.array_equal(*saved)
    (sheet,), (shown,) = (client.images(result, node) for node in ("one", "sheet"))
    assert np.array_equal(shown, sheet)
    (name,) = result.outputs["save"]["text"]
    (file,) = (server.base / "output" / "imagic").glob("fresh*.safetensors")
    about = edit_about(file)
    assert about["sentence"] == "a sitting dog" and about["base_name"] == narrow_checkpoint.name
    assert about["ImagicFinetuneModel"]["steps"] == 3
    with (
        serve(comfyui_folder, [narrow_checkpoint], more_packs=[NARROW_UNETS]) as fresh,
        Client(fresh.url) as other,
    ):
        folder = fresh.base / "output" / "imagic"
        folder.mkdir(parents=True)
        shutil.copy(file, folder)
        loading = common(other) | drawing(["edit", 0], ["edit", 1], ["edit", 2], "loaded")
        loading["edit"] = node("ImagicLoadEdit", model=["load", 0], edit=name)
        loaded = other.images(other.run(loading), "pictures")
        for a, b in zip(saved, loaded, strict=True):
            # Not to the bit: another process may add up in another order.
            assert (np.abs(np.asarray(a, int) - np.asarray(b, int)) > 1).mean() < 1e-3
        with pytest.raises((PromptRejected, PromptFailed), match="not in list|not among"):
            loading["edit"]["inputs"]["edit"] = f"../output/{name}"
            other.run(loading)


def edit_about(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["edit"])["about"]
