"""The example workflows of other models through the real server, to their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from machine.host_process import Server
from safetensors.torch import load_file, save_file
from talk.api import Prompt
from talk.client import Client, Result
from talk.workflow import find, nodes_of

from examples.prompts import QUICK, drawn, example, put

SIZE = (80, 120)  # of what is drawn: rows and columns


@pytest.fixture(scope="module")
def flux_checkpoint(small_models: Path, families_server: Server, tmp_path_factory) -> str:
    """All of a tiny Flux in one file, its network in float8, as most users have it."""
    parts = {
        "model.diffusion_model.": "diffusion_models/flux",
        "text_encoders.clip_l.transformer.": "text_encoders/clip_l",
        "text_encoders.t5xxl.transformer.": "text_encoders/t5xxl",
        "vae.": "vae/flux",
    }
    weights = {
        prefix + key: tensor.to(torch.float8_e4m3fn) if "diffusion" in file else tensor
        for prefix, file in parts.items()
        for key, tensor in load_file(small_models / f"{file}.safetensors").items()
    }
    file = tmp_path_factory.mktemp("flux") / "flux_fp8.safetensors"
    save_file(weights, file)
    put(file, families_server.base / "models/checkpoints" / file.name)
    return file.name


def edited(client: Client, name: str, checkpoint: str) -> tuple[Prompt, np.ndarray]:
    """Run an edit; see that the picture has the photograph's shape, and that a new eta is quick."""
    loader = {"CheckpointLoaderSimple": {"ckpt_name": checkpoint}}
    prompt = example(client, name, QUICK | loader)
    result = client.run(prompt)
    assert {*result.executed, *result.cached} == set(prompt)
    picture = drawn(client, prompt, result)
    assert picture.shape == (*SIZE, 3) and picture.std() > 1

    find(prompt, "ImagicInterpolateConditioning")["eta"] = 0.1
    again = client.run(prompt)
    assert not trained(prompt, again)
    assert not np.array_equal(picture, drawn(client, prompt, again))
    return prompt, drawn(client, prompt, again)


def trained(prompt: Prompt, result: Result) -> list[str]:
    """The training nodes that ran."""
    kinds = {"ImagicOptimizeEmbedding", "ImagicFinetuneModel"}
    return [key for key in result.executed if prompt[key]["class_type"] in kinds]


def test_the_edit_with_sdxl(families_client):
    edited(families_client, "imagic_sdxl", "sdxl.safetensors")


def test_the_edit_with_flux_in_float8(families_client, flux_checkpoint):
    client = families_client
    prompt, picture = edited(client, "imagic_flux", flux_checkpoint)
    learning, drawing = nodes_of(prompt, "FluxGuidance")
    prompt[drawing]["inputs"]["guidance"] = 1.0
    result = client.run(prompt)
    assert not trained(prompt, result)
    assert not np.array_equal(picture, drawn(client, prompt, result))
    prompt[learning]["inputs"]["guidance"] = 3.5
    assert len(trained(prompt, client.run(prompt))) == 2


@pytest.fixture(scope="module")
def cascade(families_server: Server) -> tuple[Prompt, np.ndarray]:
    with Client(families_server.url) as client:
        prompt = example(client, "imagic_cascade")
        for loader, family in zip(
            nodes_of(prompt, "CheckpointLoaderSimple"), ("sd15", "x4_upscaler"), strict=True
        ):
            prompt[loader]["inputs"]["ckpt_name"] = f"{family}.safetensors"
        prompt[nodes_of(prompt, "ImageScaleToTotalPixels")[1]]["inputs"]["megapixels"] = 0.02
        # Enough for a picture that shows it.
        tuner = nodes_of(prompt, "ImagicFinetuneModel")[1]
        prompt[tuner]["inputs"] |= {"steps": 3, "learning_rate": 1e-2}
        result = client.run(prompt)
        assert {*result.executed, *result.cached} == set(prompt)
        return prompt, drawn(client, prompt, result)


def test_the_cascade_draws_the_edit_larger(cascade):
    _, picture = cascade
    assert picture.shape == (2 * SIZE[0], 2 * SIZE[1], 3) and picture.std() > 1


def test_the_cascades_upscaler_sees_the_edit_and_learns_only_of_the_photograph(
    cascade, families_client
):
    prompt, picture = cascade
    (mix,) = nodes_of(prompt, "ImagicInterpolateConditioning")
    another = {**prompt, mix: {**prompt[mix], "inputs": {**prompt[mix]["inputs"], "eta": 0.1}}}
    result = families_client.run(another)
    assert not trained(another, result)
    assert not np.array_equal(picture, drawn(families_client, another, result))


def test_the_cascades_upscaler_draws_with_what_it_learned(cascade, families_client):
    prompt, picture = cascade
    tuner, sampler = nodes_of(prompt, "ImagicFinetuneModel")[1], nodes_of(prompt, "KSampler")[1]
    assert prompt[sampler]["inputs"]["model"] == [tuner, 0]
    as_loaded = {**prompt[sampler]["inputs"], "model": prompt[tuner]["inputs"]["model"]}
    plain = {**prompt, sampler: {**prompt[sampler], "inputs": as_loaded}}
    result = families_client.run(plain)
    assert not np.array_equal(picture, drawn(families_client, plain, result))


def test_the_cascades_upscaler_learns_under_the_sentence_from_the_photograph(cascade):
    prompt, _ = cascade
    tuner = prompt[nodes_of(prompt, "ImagicFinetuneModel")[1]]["inputs"]

    def above(key: str) -> set[str]:
        links = [v for v in prompt[key]["inputs"].values() if isinstance(v, list)]
        return {key}.union(*(above(link[0]) for link in links))

    kinds = {prompt[key]["class_type"] for key in above(tuner["optimized"][0])}
    assert {"PrimitiveStringMultiline", "SD_4XUpscale_Conditioning", "LoadImage"} <= kinds
    assert not {kind for kind in kinds if kind.startswith("Imagic")}
