"""The TEdBench runner through a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine.environment import TESTS
from machine.host_process import Server, put_file
from PIL import Image
from skimage.metrics import structural_similarity

from tedbench import benchmark, cluster, jobs
from tedbench.cluster import Comfy
from tedbench.page import load_key
from tedbench.pictures import make_benchmark, png
from tedbench.prompts import Photograph, method_prompt, picture_node
from tedbench.protocol import METHODS, Protocol, load
from tedbench.servers import defaults
from tedbench.store import Store
from tedbench.test_cluster import processes
from tedbench.trial import Counting

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
def finished(server: Server, narrow_checkpoint: Path, tmp_path_factory) -> Path:
    """Two edits of noise by all methods."""
    folder = tmp_path_factory.mktemp("tedbench")
    make_benchmark(folder / "tedbench")
    run(folder / "tedbench", folder / "out", server, narrow_checkpoint)
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


def test_pictures_are_measured_and_the_measure_is_named(finished: Path) -> None:
    found = json.loads((finished / "scores.json").read_text())
    told = (finished / "scores.md").read_text()
    measure = next(iter(found["measures"]))
    assert f"| method | setting | {measure} |" in told and f"**{measure}**: of: fidelity" in told
    rows = {(row["method"], row["setting"]): row["mean"][measure] for row in found["rows"]}
    assert rows.pop(("photograph", "")) == pytest.approx(1, abs=1e-6)
    assert len(rows) == 6 and max(rows.values()) < 1
    # Each score is its own picture's: an order mixed up would give another one.
    if measure == "SSIM":
        store = Store(finished)
        for name in store.names():
            scored = store.scores(name)
            photograph = pixels(store.input(name.split("-")[0]))
            for (method, setting, _), row in zip(
                scored["pictures"], scored["rows"][1:], strict=True
            ):
                ours = ssim(pixels(store.picture(name, method, setting)), photograph)
                assert row[measure] == pytest.approx(ours, abs=2e-3)
    assert (finished / "curves.png").is_file()


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity by another implementation than the runner's."""
    return float(
        structural_similarity(
            a, b, data_range=255, channel_axis=2, gaussian_weights=True, use_sample_covariance=False
        )
    )


def test_ddib_comes_back_where_source_and_target_are_one(
    server: Server, client, narrow_checkpoint: Path, tmp_path: Path, finished: Path
) -> None:
    """To noise and back under one sentence, without guidance: nearly the autoencoder's picture."""
    protocol = replace(load(finished), steps=60, cfg=1.0, ddib_source="A cat.")
    photograph = tmp_path / "photograph.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photograph)
    given = Photograph(client.upload(photograph), 64, 64)
    prompt = method_prompt(protocol, "ddib", given, "A cat.")
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
    finished: Path, server: Server, narrow_checkpoint: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("eta_*/*.png")}
    told = run(finished.parent / "tedbench", finished, server, narrow_checkpoint)
    assert "0 methods to run on 0 edits" in told
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("eta_*/*.png")} == before
    left = [f.name for place in ("input", "output") for f in (server.base / place).glob("**/*")]
    assert [name for name in left if name.startswith(("pet", "tedbench", "photograph.png-"))] == []


def test_page_is_made_of_what_was_run(finished: Path) -> None:
    assert len(load_key(finished)["trials"]) == 4
    assert len(list((finished / "page" / "pictures").glob("*.png"))) == 12


@pytest.mark.skipif(os.name == "nt", reason="kills by a POSIX signal")
def test_workers_with_a_comfyui_of_their_own_edit_a_folder_and_one_is_killed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever is killed leaves its folder behind.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    models, folder = tmp_path / "models", tmp_path / "studio"
    for made in (models / "checkpoints", folder):
        made.mkdir(parents=True)
    put_file(tiny_checkpoint, models / "checkpoints" / tiny_checkpoint.name)
    listed = [{"img_name": f"{i}.png", "target_text": f"A chair {i}."} for i in range(4)]
    for i, one in enumerate(listed):
        (folder / one["img_name"]).write_bytes(png(i))
    (folder / "input_list.json").write_text(json.dumps(listed))
    store, killed = Counting(tmp_path / "out"), []

    def kills_the_other(line: str) -> None:
        if sum(store.came.values()) == 3 and not killed:
            ((url, process),) = (one for one in of.items() if not line.endswith(one[0]))
            killed.append(url)
            os.kill(process, signal.SIGKILL)

    own = Comfy(models=models, options=("--cpu",))
    with cluster.local([own, replace(own)]) as client:
        of = processes(client)
        (known, _) = client.run(jobs.nodes).values()
        protocol = Protocol(
            "a folder", tiny_checkpoint.name,
            defaults(known, "ImagicOptimizeEmbedding", steps=2),
            defaults(known, "ImagicFinetuneModel", steps=2),
            size=64, steps=2, etas=(0.0, 0.7), strengths=(0.7,),
        )  # fmt: skip
        jobs.Run(client, store, protocol, METHODS, kills_the_other)(benchmark.read(folder))
        with pytest.raises(urllib.error.URLError):  # its ComfyUI ended with it
            urllib.request.urlopen(f"{killed[0]}/queue", timeout=5)
    assert store.failures() == []
    assert len(store.came) == 16 and set(store.came.values()) == {1}
    for name, method in store.came:
        assert store.is_done(name, method, protocol.settings(method))


def test_real_benchmark_runs(
    tedbench: Path, server: Server, narrow_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    zebra = "zebra.jpeg-A_photo_of_a_horse"
    run(tedbench, out, server, narrow_checkpoint, "--edits", zebra)
    assert (out / "imagic" / "eta_0.70" / f"{zebra}.png").is_file()
    assert (out / "ddib" / f"{zebra}.png").is_file()
    assert json.loads((out / "scores.json").read_text())["edits"] == [zebra]
    with Image.open(tedbench / "originals" / "zebra.jpeg") as original:
        expected = np.asarray(original.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))
    assert np.abs(pixels(out / "inputs" / "zebra.jpeg.png") - expected).mean() < 4
