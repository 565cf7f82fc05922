"""The nodes beside the three: sweep, sheet, edits in files, scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import kinds
from machine.host_process import serve
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from talk.api import PromptRejected, node
from talk.client import Client, PromptFailed

from host import given


def flat(value: float, count: int = 1, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    """An IMAGE of one grey."""
    return torch.full((count, *size, 3), value)


# ---- eta sweep ------------------------------------------------------------------------------


def test_a_sweep_is_equation_4_at_each_eta(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    conditionings, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.0, 1.0, 6)
    assert etas == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(conditionings) == 6
    for conditioning, eta in zip(conditionings, etas, strict=True):
        (expected,) = nodes.interpolate(target, optimized, eta)
        assert torch.equal(conditioning[0][0], expected[0][0])
        pooled = [c[0][1]["pooled_output"] for c in (conditioning, expected)]
        assert torch.equal(*pooled)


def test_a_sweep_of_one_is_its_start(nodes):
    target, optimized = given.conditioning(0), given.conditioning(1)
    _, etas = nodes.call("ImagicEtaSweep", target, optimized, 0.7, 1.0, 1)
    assert etas == [0.7]


def test_a_sweep_refuses_another_text_encoders_sentence(nodes):
    with pytest.raises(ValueError, match="Eta Sweep: 'target' and 'optimized' do not match"):
        nodes.call("ImagicEtaSweep", given.conditioning(width=1024), given.conditioning(), 0, 1, 2)


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
    target, latent = given.conditioning(), given.latent()
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
    from families.tiny import build_tiny

    name = save(nodes, model, learned)[3]
    other = given.load(build_tiny(tmp_path / "other.safetensors", seed=1))
    info = nodes.call("ImagicLoadEdit", other, name)[4]
    assert info.startswith("Warning: 'model' is not the one") and "SD15" in info.splitlines()[0]
    assert "is not the one" in caplog.text


def test_the_hash_of_the_base_is_of_the_model_alone(nodes, model, learned, tiny_checkpoint):
    base_hash = nodes.host.base_hash
    before = base_hash(model)
    nodes.sampled_loss(learned.tuned, learned.optimized, learned.latent, 1)  # patched in place
    assert base_hash(model) == before
    assert base_hash(given.load(tiny_checkpoint, dtype=torch.bfloat16)) == before
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
    server, client, comfyui_folder, tiny_checkpoint, tmp_path
):
    photograph = tmp_path / "photograph.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(photograph)

    def common(client):
        return {
            "load": node("CheckpointLoaderSimple", ckpt_name=tiny_checkpoint.name),
            "photograph": node("LoadImage", image=client.upload(photograph)),
            "image": node("VAEEncode", pixels=["photograph", 0], vae=["load", 2]),
        }

    saving = common(client) | drawing(["save", 0], ["save", 1], ["save", 2], "saved")
    saving["text"] = node("CLIPTextEncode", text="a sitting dog", clip=["load", 1])
    training = {"model": ["load", 0], "image": ["image", 0], "seed": 0, "batch_size": 1}
    saving["a"] = node("ImagicOptimizeEmbedding", target=["text", 0], **training)
    saving["b"] = node("ImagicFinetuneModel", optimized=["a", 0], method="lora", **training)
    saving["a"]["inputs"].update(steps=2, learning_rate=1e-2)
    saving["b"]["inputs"].update(steps=3, learning_rate=1e-3)
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
    assert about["sentence"] == "a sitting dog" and about["base_name"] == tiny_checkpoint.name
    assert about["ImagicFinetuneModel"]["steps"] == 3
    with (
        serve(comfyui_folder, [tiny_checkpoint]) as fresh,
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


# ---- scores ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measures(nodes):
    return nodes.module.nodes.scoring.measures


@pytest.fixture(scope="module")
def recommend(nodes):
    return nodes.module.nodes.scoring.recommend.recommend


@pytest.fixture
def without_lpips(measures, monkeypatch):
    """As on a machine that has no LPIPS."""
    monkeypatch.setattr(measures, "lpips_network", lambda: None)


@pytest.fixture
def photograph() -> torch.Tensor:
    return torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(5))


def sweep(photograph: torch.Tensor, etas: list[float]) -> list[torch.Tensor]:
    """Pictures that go from the photograph to another one."""
    other = torch.rand(photograph.shape, generator=torch.Generator().manual_seed(6))
    return [photograph + eta * (other - photograph) for eta in etas]


ETAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_ssim_is_one_for_the_same_picture_and_falls_with_the_distance(measures, photograph):
    scores = [measures.ssim(p, photograph).item() for p in sweep(photograph, ETAS)]
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.2


def test_ssim_agrees_with_its_definition_on_constants(measures):
    # So dark that its constant for the means counts, and the rounding of its variances does not.
    expected = (2 * 0.02 * 0.06 + 1e-4) / (0.02**2 + 0.06**2 + 1e-4)
    assert measures.ssim(flat(0.02), flat(0.06)).item() == pytest.approx(expected, rel=1e-4)


def test_ssim_of_pictures_smaller_than_its_window(measures):
    tiny = torch.rand(1, 4, 6, 3)
    assert measures.ssim(tiny, tiny).item() == pytest.approx(1, abs=1e-4)


def test_the_balance_of_both_curves_is_recommended(recommend):
    faithful, aligned = [0.95, 0.93, 0.9, 0.6, 0.5], [0.2, 0.21, 0.29, 0.295, 0.3]
    choice = recommend(ETAS, faithful, aligned)
    assert (choice.best, choice.low, choice.high) == (2, 2, 2)
    wide = recommend(ETAS, [0.9, 0.8, 0.75, 0.74, 0.3], [0.1, 0.2, 0.27, 0.28, 0.3])
    assert (wide.low, wide.best, wide.high) == (2, 2, 3)


def test_without_text_the_first_after_the_steepest_fall_is_recommended(recommend):
    choice = recommend(ETAS, [0.95, 0.93, 0.9, 0.6, 0.55], None)
    assert (choice.low, choice.best, choice.high) == (3, 3, 4)
    assert "text was not looked at" in choice.rule
    risen = recommend(ETAS, [0.5, 0.6, 0.6, 0.7, 0.8], None)
    assert risen.best == 2, "where nothing falls, the flattest place"


def test_it_says_when_no_picture_fits_the_text_better(recommend):
    rule = recommend(ETAS, [0.9, 0.8, 0.7, 0.6, 0.5], [0.3, 0.29, 0.28, 0.27, 0.26]).rule
    assert "no picture fits the text better than the one at eta 0" in rule


def test_scores_of_a_sweep_in_any_order(nodes, without_lpips, photograph):
    order = [3, 0, 4, 1, 2]
    etas = [ETAS[i] for i in order]
    args = sweep(photograph, etas), [photograph], etas
    curves, table, eta, best, *around = nodes.call("ImagicScoreEdits", *args)
    assert curves.shape == (1, 500, 800, 3) and curves.std() > 0.05
    rows = [line.split() for line in table.splitlines()[1:6]]
    assert [float(row[0]) for row in rows] == ETAS
    values = [float(row[1]) for row in rows]
    assert values == sorted(values, reverse=True) and values[0] == 1
    assert "SSIM" in table and "choose yourself" in table
    assert torch.equal(best, args[0][etas.index(eta)])
    place = ETAS.index(eta)
    assert around == [ETAS[max(place - 1, 0)], ETAS[min(place + 1, len(ETAS) - 1)]]
    assert nodes.call("ImagicScoreEdits", *args)[2] == eta


def test_the_numbers_of_the_table_go_out_beside_it(nodes, without_lpips, photograph):
    told = nodes.nodes["ImagicScoreEdits"].execute(sweep(photograph, ETAS), [photograph], ETAS)
    (numbers,) = told.ui["scores"]
    numbers = json.loads(numbers)
    assert numbers["etas"] == ETAS and list(numbers["measures"]) == ["SSIM"]
    rows = [line.split() for line in told.result[1].splitlines()[1:6]]
    assert [f"{value:.4f}" for value in numbers["measures"]["SSIM"]] == [row[1] for row in rows]


def test_a_photograph_of_another_size_is_compared_at_the_pictures_size(nodes, without_lpips):
    smooth = torch.linspace(0, 1, 96).view(1, 1, 96, 1).expand(1, 72, 96, 3)
    small = torch.linspace(0, 1, 64).view(1, 1, 64, 1).expand(1, 48, 64, 3)
    _, table, *_ = nodes.call("ImagicScoreEdits", sweep(small, ETAS), [smooth], ETAS)
    assert float(table.splitlines()[1].split()[1]) > 0.99


def test_lpips_is_used_only_when_nothing_must_be_downloaded(
    measures, photograph, monkeypatch, tmp_path
):
    class Lpips(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b):
            assert a.min() < 0 and a.shape[1] == 3 and min(a.shape[2:]) >= 64
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://x.org/net-1.pth"))
    modules = {
        "lpips": SimpleNamespace(LPIPS=Lpips),
        "torchvision.models": SimpleNamespace(AlexNet_Weights=weights),
    }
    monkeypatch.setattr(measures.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(measures.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pictures = sweep(photograph, ETAS)
    assert measures.fidelity(pictures, photograph)[0] == "SSIM"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "net-1.pth").write_bytes(b"")
    name, values = measures.fidelity(pictures, photograph)
    assert name == "1 - LPIPS" and values[0] == 1 and values == sorted(values, reverse=True)
    monkeypatch.setattr(measures.importlib.util, "find_spec", lambda name: None)
    assert measures.lpips_network() is None


@pytest.fixture(scope="module")
def clip(comfy, tiny_checkpoint):
    """The text encoder of the checkpoint, with the projection that it lacks."""
    import comfy.sd

    with torch.inference_mode():
        _, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint), output_vae=False)
    return clip


@pytest.fixture(scope="module")
def whole_clip(clip):
    """The same text encoder as Load CLIP reads it from a file that has a projection."""
    import comfy.sd

    prefix = "clip_l.transformer."
    state = {k.removeprefix(prefix): v for k, v in clip.get_sd().items() if prefix in k}
    noise = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))
    state["text_projection.weight"] = torch.linalg.qr(noise)[0]
    with torch.inference_mode():
        return comfy.sd.load_text_encoder_state_dicts(
            [state], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION
        )


def vision(tmp_path, width: int = 768):
    """The host's CLIP vision model, a small one."""
    import comfy.clip_vision

    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
        "patch_size": 8,
        "image_size": 32,
        "num_channels": 3,
        "model_type": "clip_vision_model",
        "projection_dim": width,
    }
    (tmp_path / "vision.json").write_text(json.dumps(config))
    model = comfy.clip_vision.ClipVisionModel(str(tmp_path / "vision.json"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_clip_score_is_the_cosine_of_the_hosts_own_embeddings(
    nodes, without_lpips, photograph, whole_clip, tmp_path
):
    eyes, pictures = vision(tmp_path), sweep(photograph, ETAS)
    args = (pictures, [photograph], ETAS, [eyes], [whole_clip], ["a sitting dog"])
    _, table, eta, *_ = nodes.call("ImagicScoreEdits", *args)
    with torch.inference_mode():
        tokens = whole_clip.tokenize("a sitting dog")
        whole_clip.encode_from_tokens(tokens)  # loads it
        encoder = whole_clip.cond_stage_model
        encoder.set_clip_options({"projected_pooled": True})
        sentence = encoder.encode_token_weights(tokens)[1].float()
        encoder.reset_clip_options()
        seen = [eyes.encode_image(p)["image_embeds"] for p in pictures]
    expected = [torch.cosine_similarity(s, sentence).item() for s in seen]
    found = [float(line.split()[2]) for line in table.splitlines()[1:6]]
    assert found == pytest.approx(expected, abs=1e-4) and len(set(found)) > 2
    assert "CLIP score" in table and "lower of the two" in table


def test_encoders_of_different_clips_are_refused(
    nodes, without_lpips, photograph, whole_clip, tmp_path
):
    args = sweep(photograph, ETAS), [photograph], ETAS
    with pytest.raises(ValueError, match="by 768 numbers, 'clip_vision' a picture by 512"):
        nodes.call("ImagicScoreEdits", *args, [vision(tmp_path, 512)], [whole_clip], ["a dog"])


def test_a_projection_that_was_not_in_the_file_is_refused(
    nodes, without_lpips, photograph, whole_clip, tmp_path
):
    args = sweep(photograph, ETAS), [photograph], ETAS
    projection = whole_clip.cond_stage_model.clip_l.transformer.text_projection
    with torch.inference_mode():
        before = projection.weight.clone()
    try:
        # A missing projection is whatever the memory held: nothing, a start value, a picture ...
        for weight in (
            torch.zeros(768, 768),
            torch.eye(768),
            torch.full((768, 768), torch.nan),
            torch.linspace(0, 1, 768 * 768).view(768, 768),
            torch.randn(768, 768) * 1e30,
            torch.randn(768, 768).exp().exp() * torch.randn(768, 768).sign(),
        ):
            with torch.inference_mode():
                projection.weight.copy_(weight)
            with pytest.raises(ValueError, match="'clip' has no text projection"):
                nodes.call("ImagicScoreEdits", *args, [vision(tmp_path)], [whole_clip], ["a dog"])
    finally:
        with torch.inference_mode():
            projection.weight.copy_(before)


def test_a_vision_model_without_projection_is_refused(nodes, without_lpips, photograph, clip):
    args = sweep(photograph, ETAS), [photograph], ETAS
    other = SimpleNamespace(model=SimpleNamespace(visual_projection=lambda x: x))
    with pytest.raises(ValueError, match="Score Edits: 'clip_vision' is a SimpleNamespace"):
        nodes.call("ImagicScoreEdits", *args, [other], [clip], ["a dog"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": [object()], "text": ["a dog"]}, "'clip_vision' is not given"),
        ({"clip_vision": [object()], "text": ["a dog"]}, "'clip' is not given"),
        ({"clip_vision": [object()], "clip": [object()], "text": [" "]}, "'text' is not given"),
        ({"etas": ETAS[:4]}, "'images' has 5 pictures, but 'etas' has 4"),
        ({"etas": [0.5] * 5}, "'etas' has 1 different values of 5"),
        ({"images": [flat(0.5)] * 5, "original": [flat(0.5)]}, "equally near to 'original'"),
        ({"original": [flat(0.5, size=(64, 16))]}, "'original' is 16 x 64, but 'images' are"),
    ],
)
def test_what_cannot_be_scored_is_refused(nodes, without_lpips, photograph, change, message):
    inputs = {"images": sweep(photograph, ETAS), "original": [photograph], "etas": ETAS} | change
    with pytest.raises(ValueError, match=f"Imagic Score Edits: .*{message}"):
        nodes.call("ImagicScoreEdits", **inputs)
