"""Imagic Score Edits."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch


def flat(value: float, count: int = 1, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    """An IMAGE of one grey."""
    return torch.full((count, *size, 3), value)


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


def vision(tmp_path, width: int | None = 768):
    """The host's CLIP vision model, a small one; None: without a projection."""
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
    }
    if width is not None:
        config["projection_dim"] = width
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


def test_a_vision_model_without_projection_is_refused(
    nodes, without_lpips, photograph, clip, tmp_path
):
    args = sweep(photograph, ETAS), [photograph], ETAS
    other = vision(tmp_path, None)
    with pytest.raises(ValueError, match="Score Edits: 'clip_vision' is a CLIPVisionModelProj"):
        nodes.call("ImagicScoreEdits", *args, [other], [clip], ["a dog"])


def test_alignment_needs_all_three(nodes, without_lpips, photograph, clip, tmp_path):
    given = {"clip_vision": [vision(tmp_path)], "clip": [clip], "text": ["a dog"]}
    for name in given:
        inputs = given | {name: [" "] if name == "text" else None}
        with pytest.raises(ValueError, match=f"Score Edits: '{name}' is not given"):
            nodes.call("ImagicScoreEdits", sweep(photograph, ETAS), [photograph], ETAS, **inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": [object()]}, "'clip' got object, not CLIP; connect it anew"),
        ({"clip_vision": [object()]}, "'clip_vision' got object, not CLIP_VISION; connect it anew"),
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
