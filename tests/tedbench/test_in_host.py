"""The TEdBench runner through a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine.environment import TESTS
from machine.host_process import Server
from PIL import Image
from skimage.metrics import structural_similarity

from tedbench.page import load_key
from tedbench.prompts import score_prompt
from tedbench.protocol import METHODS, load
from tedbench.store import Store
from tedbench.test_tedbench import make_benchmark

QUICK = (
    "--size", "64", "--steps", "2", "--optimize-steps", "2", "--finetune-steps", "2",
    "--etas", "0", "0.7", "--strengths", "0.7",
)  # fmt: skip


def run(folder: Path, out: Path, server: Server, checkpoint: Path, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, TESTS / "tedbench", "run", folder, out, "--checkpoint", checkpoint.name,
         "--server", server.url, *QUICK, *more],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(server: Server, tiny_checkpoint: Path, tmp_path_factory) -> Path:
    """Two edits of noise by all methods."""
    folder = tmp_path_factory.mktemp("tedbench")
    make_benchmark(folder / "tedbench")
    run(folder / "tedbench", folder / "out", server, tiny_checkpoint)
    return folder / "out"


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"), float)


def test_every_method_makes_pictures_of_its_own(finished: Path) -> None:
    store, protocol = Store(finished), load(finished)
    for name in store.names():
        assert store.record(name, "imagic")["seconds"] > 0
        pictures = [
            pixels(store.picture(name, method, setting))
            for method in METHODS for setting in protocol.settings(method)
        ]  # fmt: skip
        assert {picture.shape for picture in pictures} == {(64, 64, 3)}
        assert len({picture.tobytes() for picture in pictures}) == len(pictures) == 6
        assert pixels(store.input(f"{name.split('-')[0]}")).shape == (64, 64, 3)


def test_protocol_holds_all_inputs_of_the_nodes(finished: Path) -> None:
    protocol = load(finished)
    assert protocol.optimize["steps"] == 2 and protocol.optimize["batch_size"] == 4
    assert protocol.finetune["method"] == "lora" and protocol.finetune["rank"] == 16


def test_pictures_are_scored_by_the_packs_own_measure(finished: Path) -> None:
    store, protocol = Store(finished), load(finished)
    found = json.loads((finished / "scores.json").read_text())
    (measure,) = found["measures"]
    assert measure in ("SSIM", "1 - LPIPS")
    rows = {(row["method"], row["setting"]): row[measure] for row in found["rows"]}
    assert rows.pop(("photograph", "")) == 1.0
    assert len(rows) == 6 and max(rows.values()) < 1
    # Each score is its own picture's: an order mixed up would give another one.
    if measure == "SSIM":
        for name in store.names():
            told = store.scores(name)
            photograph = pixels(store.input(name.split("-")[0]))
            for (method, setting, _), row in zip(told["pictures"], told["rows"][1:], strict=True):
                ours = ssim(pixels(store.picture(name, method, setting)), photograph)
                assert row[measure] == pytest.approx(ours, abs=2e-3)
    assert (finished / "curves.png").is_file()
    assert protocol.clip is None and "no CLIP was named" in (finished / "scores.md").read_text()


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity as its authors define it, by another implementation than the pack's."""
    return float(
        structural_similarity(
            a, b, data_range=255, channel_axis=2, gaussian_weights=True, use_sample_covariance=False
        )
    )


def test_ddib_comes_back_where_source_and_target_are_one(
    server: Server, client, tiny_checkpoint: Path, tmp_path: Path, finished: Path
) -> None:
    """To noise and back under one sentence, without guidance: nearly the autoencoder's picture."""
    from tedbench.prompts import method_prompt, picture_node

    protocol = replace(load(finished), steps=60, cfg=1.0, ddib_source="A cat.")
    photograph = tmp_path / "photograph.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photograph)
    prompt = method_prompt(protocol, "ddib", client.upload(photograph), "A cat.")
    prompt["plain"] = {
        "class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["checkpoint", 2]}
    }  # fmt: skip
    prompt["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["plain", 0]}}
    result = client.run(prompt)
    back, plain = (
        np.asarray(client.images(result, node)[0], float) for node in (picture_node(0), "shown")
    )
    assert np.abs(back - plain).mean() < 0.1 * plain.std()


def test_a_second_run_does_nothing_and_leaves_no_files_with_the_server(
    finished: Path, server: Server, tiny_checkpoint: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("eta_*/*.png")}
    told = run(finished.parent / "tedbench", finished, server, tiny_checkpoint)
    assert "0 methods to run on 2 edits" in told
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("eta_*/*.png")} == before
    left = [f.name for place in ("input", "output") for f in (server.base / place).glob("**/*")]
    assert [name for name in left if name.startswith(("pet", "tedbench", "photograph.png-"))] == []


def test_page_is_made_of_what_was_run(finished: Path) -> None:
    assert len(load_key(finished)["trials"]) == 4
    assert len(list((finished / "page" / "pictures").glob("*.png"))) == 12


def test_what_was_just_scored_is_scored_again_the_same(
    finished: Path, server: Server, tiny_checkpoint: Path
) -> None:
    """The second time the server has it all in its cache, from where it sends no numbers."""
    file = next((finished / "scores").iterdir())
    before = file.read_bytes()
    for _ in range(2):
        file.unlink()
        run(finished.parent / "tedbench", finished, server, tiny_checkpoint)
        assert file.read_bytes() == before


def test_scoring_with_clip_is_wired_as_the_server_wants_it(
    client, finished: Path, server: Server, tmp_path: Path
) -> None:
    """The server checks links and types; that the file is no CLIP shows when it is loaded."""
    from safetensors.numpy import save_file
    from talk.client import PromptFailed

    for folder in ("clip_vision", "text_encoders"):
        (server.base / "models" / folder).mkdir(exist_ok=True)
        save_file({"x": np.zeros(1)}, server.base / "models" / folder / "named_only.safetensors")
    photograph = tmp_path / "photograph.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(photograph)
    name = client.upload(photograph)
    protocol = replace(load(finished), clip="named_only.safetensors")
    with pytest.raises(PromptFailed, match="CLIPVisionLoader|CLIPLoader"):
        client.run(score_prompt(protocol, name, "A cat.", [name, name]))


def test_real_benchmark_runs(
    tedbench: Path, server: Server, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    zebra = "zebra.jpeg-A_photo_of_a_horse"
    run(tedbench, out, server, tiny_checkpoint, "--edits", zebra)
    assert (out / "imagic" / "eta_0.70" / f"{zebra}.png").is_file()
    assert (out / "ddib" / f"{zebra}.png").is_file()
    assert json.loads((out / "scores.json").read_text())["edits"] == [zebra]
    with Image.open(tedbench / "originals" / "zebra.jpeg") as original:
        expected = np.asarray(original.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))
    assert np.abs(pixels(out / "inputs" / "zebra.jpeg.png") - expected).mean() < 4
