"""The example workflows of Stable Diffusion 1.x through the real server, to their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine.host_process import Server
from miniature import clip_layout
from miniature.build import build
from miniature.metrics import psnr
from PIL import Image
from talk.api import Prompt
from talk.client import Client, Result
from talk.workflow import find, nodes_of

from examples import ours
from examples.companions import build_upscaler
from examples.parts import SD15
from examples.prompts import QUICK, drawn, edit_file, example, put


@pytest.fixture(scope="module")
def stocked(server: Server, narrow_checkpoint: Path) -> Server:
    """The server with the checkpoint that the workflows name; the pack brings the photograph."""
    put(narrow_checkpoint, server.base / "models/checkpoints" / SD15["name"])
    return server


def tap(prompt: Prompt, node: str, output: int = 0) -> str:
    """Show the pictures of a node, and return the id of what shows them."""
    key = f"tap {node} {output}"
    prompt[key] = {"class_type": "PreviewImage", "inputs": {"images": [node, output]}}
    return key


def arrays(client: Client, result: Result, node: str) -> list[np.ndarray]:
    return [np.asarray(image) for image in client.images(result, node)]


def run(client: Client, prompt: Prompt) -> Result:
    """Run, and see that every node of the graph took part."""
    result = client.run(prompt)
    assert {*result.executed, *result.cached} == set(prompt)
    return result


def places(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Left and top edge of every place in the sheet where a picture stands."""
    height, width = picture.shape[:2]
    # Saving cuts the fraction off that the sheet has rounded.
    near = np.abs(sheet.astype(int) - picture[0, 0]).max(-1) <= 1
    near = near[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1]
    return [
        (int(x), int(y))
        for y, x in zip(*near.nonzero(), strict=True)
        if apart(sheet[y : y + height, x : x + width], picture) <= 1
    ]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of a value of 0..255."""
    return int(np.abs(a.astype(int) - b).max())


# ---- figure 7, and using its edit again -----------------------------------------------------


@pytest.fixture(scope="module")
def sheet(stocked: Server) -> Iterator[tuple[Prompt, Result, Client]]:
    learn = {"steps": 3, "batch_size": 1, "learning_rate": 5e-2}
    with Client(stocked.url) as client:
        prompt = example(client, "imagic_eta_sheet", QUICK | {"ImagicFinetuneModel": learn})
        for node in nodes_of(prompt, "VAEDecode"):
            tap(prompt, node)
        yield prompt, run(client, prompt), client


def rows(sheet: tuple[Prompt, Result, Client]) -> list[list[np.ndarray]]:
    """The pictures of the fine-tuned model, and of the model as loaded."""
    prompt, result, client = sheet
    return [arrays(client, result, f"tap {node} 0") for node in nodes_of(prompt, "VAEDecode")]


def test_the_sheet_has_a_row_for_each_model_and_a_column_for_each_eta(sheet):
    prompt, result, client = sheet
    whole = drawn(client, prompt, result)
    tuned, plain = rows(sheet)
    assert len(tuned) == len(plain) == QUICK["ImagicEtaSweep"]["count"]
    found = [places(whole, picture) for row in (plain, tuned) for picture in row]
    assert all(len(there) == 1 for there in found)
    upper, lower = ([there[0] for there in half] for half in (found[:3], found[3:]))
    # From left to right by eta; the two models of one eta above each other.
    assert [x for x, _ in upper] == [x for x, _ in lower] == sorted({x for x, _ in upper})
    assert len({y for _, y in upper}) == len({y for _, y in lower}) == 1
    assert upper[0][1] + plain[0].shape[0] < lower[0][1]
    # Left of them, the photograph.
    assert upper[0][0] > plain[0].shape[1]


def test_the_rows_of_the_sheet_are_those_of_two_models(sheet):
    tuned, plain = rows(sheet)
    for row in (tuned, plain):
        assert apart(row[0], row[1]) > 1 and apart(row[1], row[2]) > 1
    assert all(apart(a, b) > 1 for a, b in zip(tuned, plain, strict=True))


def test_a_saved_edit_is_drawn_again_and_with_another_sentence(sheet, stocked):
    prompt, result, client = sheet
    (saver,) = nodes_of(prompt, "ImagicSaveEdit")
    (listed,) = result.outputs[saver]["text"]
    again = example(client, "imagic_reuse", QUICK | {"ImagicInterpolateConditioning": {"eta": 1.0}})
    find(again, "ImagicLoadEdit")["edit"] = listed
    words = again[nodes_of(again, "CLIPTextEncode")[0]]["inputs"]
    another = drawn(client, again, run(client, again))
    words["text"] = prompt[nodes_of(prompt, "CLIPTextEncode")[0]]["inputs"]["text"]
    result = run(client, again)
    same = drawn(client, again, result)
    (info,) = result.outputs[nodes_of(again, "PreviewAny")[0]]["text"]

    tuned, plain = rows(sheet)
    # The file keeps half precision, the sheet was drawn with all of it.
    near = psnr(same, tuned[-1])
    assert near > 30 and max(psnr(same, plain[-1]), psnr(same, another)) < near - 10
    assert SD15["name"] in info and "Warning" not in info


def test_reuse_names_the_file_that_the_sheet_writes_first(stocked):
    with Client(stocked.url) as client:
        prompt = example(client, "imagic_eta_sheet")
    (saver,) = nodes_of(prompt, "ImagicSaveEdit")
    prefix = prompt[saver]["inputs"]["filename_prefix"]
    assert edit_file(Path()).as_posix() == f"output/{prefix}_00001_.safetensors"


# ---- figure 9 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(stocked: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = clip_layout.build(tmp_path_factory.mktemp("clip") / "whole_clip.safetensors")
    there = [stocked.base / "models" / f / file.name for f in ("clip_vision", "text_encoders")]
    for place in there:
        put(file, place)
    yield file
    for place in (*there, file):
        place.unlink()


def test_the_recommended_picture_is_that_of_the_recommended_eta(stocked, clip, client):
    loaders = dict.fromkeys(("CLIPVisionLoader", "CLIPLoader"), {"clip_name": clip.name})
    prompt = example(client, "imagic_choose_eta", QUICK | loaders)
    (sweep,), (score,) = nodes_of(prompt, "ImagicEtaSweep"), nodes_of(prompt, "ImagicScoreEdits")
    prompt["eta"] = {"class_type": "PreviewAny", "inputs": {"source": [score, 2]}}
    pictures = tap(prompt, nodes_of(prompt, "VAEDecode")[0])
    result = run(client, prompt)

    (table,) = result.outputs[nodes_of(prompt, "PreviewAny")[0]]["text"]
    lines = [line.split() for line in table.splitlines()]
    assert "CLIP score" in table and "The text was not looked at" not in table
    scores = {float(line[0]): [float(x) for x in line[1:3]] for line in lines[1:4]}
    start, stop = (prompt[sweep]["inputs"][name] for name in ("start", "stop"))
    assert list(scores) == [start, (start + stop) / 2, stop]
    assert all(len(set(column)) > 1 for column in zip(*scores.values(), strict=True)), table

    chosen = float(result.outputs["eta"]["text"][0])
    recommended, swept = drawn(client, prompt, result), arrays(client, result, pictures)
    assert [apart(recommended, one) for one in swept].index(0) == list(scores).index(chosen)
    (sheet,) = nodes_of(prompt, "ImagicContactSheet")
    curves, sheet = (arrays(client, result, node)[0] for node in (score, sheet))
    assert curves.shape == (500, 800, 3)
    assert all(len(places(sheet, one)) == 1 for one in swept)


# ---- enlarging ------------------------------------------------------------------------------


def test_the_edit_is_enlarged_and_drawn_over(stocked, client, tmp_path):
    file = build_upscaler(tmp_path / "interpolating.safetensors")
    put(file, stocked.base / "models/upscale_models" / file.name)
    loader = {"UpscaleModelLoader": {"model_name": file.name}}
    prompt = example(client, "imagic_upscale", QUICK | loader)
    enlarged = tap(prompt, nodes_of(prompt, "ImageScaleBy")[0])
    result = run(client, prompt)
    (small,), (large,) = (arrays(client, result, n) for n in nodes_of(prompt, "SaveImage"))
    (between,) = arrays(client, result, enlarged)
    assert large.shape == between.shape == (2 * small.shape[0], 2 * small.shape[1], 3)
    # What is drawn over is the edit itself; and it is drawn over.
    expected = Image.fromarray(small).resize(between.shape[1::-1], Image.Resampling.BICUBIC)
    assert psnr(between, np.asarray(expected)) > 25
    assert psnr(large, between) < psnr(between, np.asarray(expected))


# ---- the baselines --------------------------------------------------------------------------


def with_round_trip(prompt: Prompt) -> str:
    """Show the photograph as the autoencoder gives it back, the best that an edit can do."""
    (encode,), (decode,) = nodes_of(prompt, "VAEEncode"), nodes_of(prompt, "VAEDecode")
    inputs = {**prompt[decode]["inputs"], "samples": [encode, 0]}
    prompt["round trip"] = {"class_type": "VAEDecode", "inputs": inputs}
    return tap(prompt, "round trip")


def test_sdedit_leaves_the_photograph_the_more_the_less_noise(stocked, client):
    far = []
    for denoise in (0.02, 0.3, 0.9):
        sampler = {"KSampler": {"steps": 2, "denoise": denoise}}
        prompt = example(client, "baseline_sdedit", QUICK | sampler)
        same = with_round_trip(prompt)
        result = run(client, prompt)
        far.append(psnr(drawn(client, prompt, result), arrays(client, result, same)[0]))
    assert far[0] > 25 and far[0] > far[1] + 3 > far[2] + 6, far


@pytest.fixture(scope="module")
def miniature(
    stocked: Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What a workflow needs to draw with a checkpoint that has learned it, a photograph of its
    world and that picture's size.
    """
    file = build(tmp_path_factory.mktemp("miniature") / "miniature.safetensors")
    put(file, stocked.base / "models/checkpoints" / file.name)
    return {
        "CheckpointLoaderSimple": {"ckpt_name": file.name},
        "LoadImage": {"image": ours.photograph(stocked.base / "input").name},
        "ImageScaleToTotalPixels": {"megapixels": ours.MEGAPIXELS},
    }


def test_ddib_returns_the_photograph_under_its_own_sentence_and_edits_it_under_another(
    stocked, client, miniature
):
    prompt = example(client, "baseline_ddib", miniature | {"BasicScheduler": {"steps": 30}})
    same = with_round_trip(prompt)
    source, target, _ = (prompt[n]["inputs"] for n in nodes_of(prompt, "CLIPTextEncode"))
    back = prompt[nodes_of(prompt, "SamplerCustom")[1]]["inputs"]
    near = {}
    source["text"] = "a photo of a standing dog on the grass"
    for text, cfg in ((source["text"], 1.0), ("a photo of a sitting dog on the beach", 3.0)):
        target["text"], back["cfg"] = text, cfg
        result = client.run(prompt)
        near[text] = psnr(drawn(client, prompt, result), arrays(client, result, same)[0])
    kept, edited = near.values()
    assert kept > 25 and edited < kept - 5, near


def test_text2live_paints_a_layer_over_the_photograph(stocked, clip, client):
    loaders = dict.fromkeys(("CLIPVisionLoader", "CLIPLoader"), {"clip_name": clip.name})
    prompt = example(client, "baseline_text2live", QUICK | loaders)
    (node,) = nodes_of(prompt, "ImagicText2Live")
    before = tap(prompt, nodes_of(prompt, "ImageScaleToTotalPixels")[0])
    layer = tap(prompt, node, 1)
    result = run(client, prompt)
    shown = [before, layer, *nodes_of(prompt, "PreviewImage"), *nodes_of(prompt, "SaveImage")]
    pictures = {key: arrays(client, result, key)[0].astype(float) for key in shown}
    (where,) = (pictures[key] / 255 for key in pictures if key not in (before, layer, shown[-1]))
    over = where * pictures[layer] + (1 - where) * pictures[before]
    # Each was cut to whole numbers by itself.
    assert np.abs(over - pictures[shown[-1]]).max() < 4 and pictures[layer].std() > 1


def test_from_its_own_noise_the_photograph_returns_and_at_another_eta_the_sentence(
    stocked, client, miniature
):
    changes = {
        # Nothing is learned: what returns the photograph is its noise alone.
        "ImagicOptimizeEmbedding": {"steps": 1, "batch_size": 1, "learning_rate": 0.0},
        "ImagicFinetuneModel": {"steps": 1, "batch_size": 1, "learning_rate": 0.0},
        "ImagicPhotographNoise": {"share": 1.0},
        "KSampler": {"steps": 50, "cfg": 1.0},
    }
    prompt = example(client, "imagic_inversion", miniature | changes)
    same = with_round_trip(prompt)
    sentence, _ = (prompt[n]["inputs"] for n in nodes_of(prompt, "CLIPTextEncode"))
    (mix,) = nodes_of(prompt, "ImagicInterpolateConditioning")
    sentence["text"] = "a photo of a standing dog on the grass"
    other = {"class_type": "CLIPTextEncode", "inputs": {**sentence, "text": "a dog on the beach"}}
    near = {}
    for eta in (0.0, 1.0):
        prompt[mix]["inputs"].update(eta=eta, target=["other", 0])
        result = client.run({**prompt, "other": other})
        near[eta] = psnr(drawn(client, prompt, result), arrays(client, result, same)[0])
    assert near[0.0] > 25 and near[1.0] < near[0.0] - 5, near


def test_the_cascades_upscaler_draws_the_edit_and_not_the_photograph(
    stocked, client, miniature, x4_checkpoint
):
    put(x4_checkpoint, stocked.base / "models/checkpoints" / x4_checkpoint.name)
    nothing = {"steps": 1, "batch_size": 1, "learning_rate": 0.0}
    changes = {
        "ImagicOptimizeEmbedding": nothing,
        "ImagicFinetuneModel": nothing,
        "ImageScaleBy": {"scale_by": 0.25},
        "PrimitiveStringMultiline": {"value": ours.SENTENCE},
        "KSampler": {"steps": 8, "cfg": 1.0},
    }
    prompt = example(client, "imagic_cascade", miniature | changes)
    _, upscaler = nodes_of(prompt, "CheckpointLoaderSimple")
    prompt[upscaler]["inputs"]["ckpt_name"] = x4_checkpoint.name
    photograph, edit = (tap(prompt, node) for node in nodes_of(prompt, "ImageScaleBy"))
    result = client.run(prompt)
    picture = Image.fromarray(drawn(client, prompt, result))
    assert picture.size == (128, 128)
    (before,), (small,) = (arrays(client, result, shown) for shown in (photograph, edit))
    again = np.asarray(picture.reduce(4))
    assert psnr(again, small) > 28 and psnr(again, before) < psnr(again, small) - 8
    enlarged = Image.fromarray(small).resize(picture.size, Image.Resampling.BICUBIC)
    assert sharpness(picture) > 1.2 * sharpness(enlarged)


def sharpness(picture: Image.Image) -> float:
    """How much a picture changes from pixel to pixel."""
    return float(np.abs(np.diff(np.asarray(picture).astype(int), axis=1)).mean())
