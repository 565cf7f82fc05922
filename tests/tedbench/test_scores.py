"""What the runner measures: each number is what its name says, each mean has its interval."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image, ImageFilter
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from tedbench import curves, measures, scores
from tedbench.pictures import RUN
from tedbench.protocol import METHODS
from tedbench.store import Store

KINDS = {"SSIM": "fidelity", "CLIP score (x)": "alignment", "CLIP direction (x)": "direction"}


class Planted:
    """Measures by a rule: the edit's number, and hundredths by place, with the measure's sign."""

    def __init__(self, *names: str, by: str = "nobody") -> None:
        self.about = {name: {"of": KINDS[name], "by": by} for name in names}
        self.asked = 0

    def measure(self, pictures: list, text: str, source: str) -> dict[str, list]:
        self.asked += 1
        number = int(text.split()[4])
        found = {
            name: [(-1) ** k * (number + i / 100) for i in range(len(pictures))]
            for k, name in enumerate(self.about)
        }
        for name, values in found.items():
            if KINDS[name] == "direction":
                values[0] = None
        return found


# ---- means and intervals --------------------------------------------------------------------


def test_means_are_by_method_and_setting_with_all_that_made_them(kept: Store) -> None:
    found = scores.report(kept, RUN, [Planted(*KINDS)])
    got = {(row["method"], row["setting"]): row["mean"] for row in found["rows"]}
    places = [("photograph", "")] + [(m, s) for m in METHODS for s in RUN.settings(m)]
    assert list(got) == places
    for i, place in enumerate(places):
        assert got[place]["SSIM"] == pytest.approx(0.5 + i / 100)
        assert got[place]["CLIP score (x)"] == pytest.approx(-0.5 - i / 100)
    assert got["photograph", ""]["CLIP direction (x)"] is None
    # Two edits: a resample has the one, the other, or both.
    assert found["rows"][2]["interval"]["SSIM"] == pytest.approx([0.02, 1.02])
    text = (kept.folder / "scores.md").read_text()
    row = "| imagic | eta 0.50 (shown to people) | 0.5200 (0.0200 to 1.0200) |"
    assert row in text and "| ddib |  (shown to people) |" in text
    assert "| method | setting | SSIM | CLIP score (x) | CLIP direction (x) |" in text
    assert "95 %, bootstrap over the edits" in text and "was not measured" not in text
    told = json.loads((kept.folder / "scores.json").read_text())
    assert told == json.loads(json.dumps(found))
    assert told["protocol"] == json.loads(json.dumps(dataclasses.asdict(RUN)))
    assert told["versions"]["torchmetrics"] == torchmetrics.__version__
    assert told["measures"]["SSIM"] == {"of": "fidelity", "by": "nobody"}


def test_intervals_are_those_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, 100)
    low, high = scores.interval(list(values))
    standard_error = values.std(ddof=1) / 10
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.15 * standard_error)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.15 * standard_error)
    assert scores.interval(list(values)) == [low, high]
    assert scores.interval([0.3, 0.3, 0.3]) == pytest.approx([0.3, 0.3])
    assert scores.interval([0.3]) is None


def test_an_edit_that_lacks_a_method_is_left_out_and_named(kept: Store) -> None:
    first, second = kept.names()
    kept.picture(second, "ddib", "").unlink()
    found = scores.report(kept, RUN, [Planted("SSIM")])
    assert found["edits"] == [first]
    assert found["left_out"] == {second: "lacks ddib"}
    assert f"Left out: {second} (lacks ddib)" in scores.markdown(found, RUN)
    assert "Alignment to the text was not measured" in scores.markdown(found, RUN)


def test_what_is_measured_is_measured_again_by_nothing_but_another_measure(
    kept: Store,
) -> None:
    judge, other = Planted("SSIM"), Planted("SSIM", by="somebody")
    scores.report(kept, RUN, [judge])
    scores.report(kept, RUN, [judge])
    assert judge.asked == 2
    changed = kept.names()[0]
    kept.picture(changed, "imagic", "eta_0.50").write_bytes(
        kept.picture(changed, "ddib", "").read_bytes()
    )
    scores.report(kept, RUN, [judge])
    assert judge.asked == 3
    found = scores.report(kept, RUN, [other])
    assert other.asked == 2 and found["measures"]["SSIM"]["by"] == "somebody"


# ---- each number is what its name says ------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Noise that has been smoothed, and two that went away from it."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8)
    original = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))
    turned = original.transpose(Image.Transpose.ROTATE_180)
    return [original, original.filter(ImageFilter.GaussianBlur(1)), turned]


def test_without_weights_ssim_stands_under_its_own_name(
    pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(measures, "CLIP", "nobody/has-this")
    (judge,) = measures.judges(None)
    found = judge.measure(pictures, "A cat.", "")
    assert list(found) == list(judge.about) == ["SSIM"]
    assert "1 - LPIPS was not measured" in judge.about["SSIM"]["weights"]
    original, *others = (
        torch.from_numpy(np.array(p) / 255.0).movedim(-1, 0)[None] for p in pictures
    )
    theirs = []
    for other in others:
        _, whole = structural_similarity_index_measure(
            other, original, data_range=1.0, return_full_image=True
        )
        # Without the border, where the window would look past the picture's edge.
        theirs.append(float(whole[..., 5:-5, 5:-5].mean()))
    assert found["SSIM"] == pytest.approx([1, *theirs], abs=1e-3)
    with pytest.raises(OSError):
        measures.judges("nobody/has-that")


def test_lpips_is_what_its_authors_defined(
    pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an AlexNet that nobody trained, for the sum is the same."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None).eval()
    weights = {
        # Of what is not looked through, one value is written.
        name: value if name.startswith("features") else torch.zeros(1).expand(value.shape)
        for name, value in network.state_dict().items()
    }
    measures.alexnet().parent.mkdir(parents=True)
    torch.save(weights, measures.alexnet())
    (judge,) = measures.judges(None) if not _has_clip() else measures.judges(None)[:1]
    found = judge.measure(pictures, "A cat.", "")
    assert list(found) == ["1 - LPIPS (AlexNet)"]
    original, *others = (_features(network, picture) for picture in pictures)
    theirs = [1 - _distance(original, other) for other in others]
    assert found["1 - LPIPS (AlexNet)"] == pytest.approx([1, *theirs], abs=1e-5)
    assert min(1 - np.array(theirs)) > 1e-4, "the measure saw nothing"
    about = judge.about["1 - LPIPS (AlexNet)"]
    assert about["by"].startswith(f"torchmetrics {torchmetrics.__version__}")
    assert "alexnet-owt-7be5be79.pth; SHA-256" in about["weights"]


def _has_clip() -> bool:
    try:
        measures.clip(measures.CLIP)
    except OSError:
        return False
    return True


def _features(network: torch.nn.Module, picture: Image.Image) -> list[torch.Tensor]:
    x = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)[None] / 127.5 - 1
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (x - shift[:, None, None]) / scale[:, None, None]
    found = []
    with torch.no_grad():
        for i, layer in enumerate(network.features):
            x = layer(x)
            if i in (1, 4, 7, 9, 11):
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-8))
                x = x.clone()
    return found


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    linear = torch.load(file, map_location="cpu", weights_only=True)
    return sum(
        float(((x - y) ** 2 * linear[f"lin{i}.model.1.weight"]).sum(1).mean())
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    )


@pytest.fixture(scope="module")
def small_clip(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that nobody trained, with the words of the real one."""
    folder = tmp_path_factory.mktemp("clips") / "small-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "projection_dim": 16}
    config = CLIPConfig(
        text_config={**sizes, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407},
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    seeing = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    words = CLIPTokenizer.from_pretrained(comfyui_folder / "comfy" / "sd1_tokenizer")
    CLIPProcessor(image_processor=seeing, tokenizer=words).save_pretrained(folder)
    return folder


def test_clip_score_and_direction_are_the_cosines_of_clip(
    pictures: list[Image.Image], small_clip: Path
) -> None:
    *_, judge = measures.judges(str(small_clip))
    found = judge.measure(pictures, "A cat that sits.", "A cat.")
    score, direction = "CLIP score (small-clip)", "CLIP direction (small-clip)"
    assert list(found) == list(judge.about) == [score, direction]
    model = CLIPModel.from_pretrained(small_clip).eval()
    words = CLIPProcessor.from_pretrained(small_clip).tokenizer
    seen = [_seen(model, picture) for picture in pictures]
    target, before = (_said(model, words(text)) for text in ("A cat that sits.", "A cat."))
    assert found[score] == pytest.approx([_cosine(one, target) for one in seen], abs=5e-3)
    ways = [_cosine(one - seen[0], target - before) for one in seen[1:]]
    assert found[direction][0] is None
    assert found[direction][1:] == pytest.approx(ways, abs=3e-2)
    # Without a sentence for the photograph the way begins at one that is named.
    unnamed = judge.measure(pictures, "A cat that sits.", "")[direction]
    assert unnamed == judge.measure(pictures, "A cat that sits.", measures.UNNAMED)[direction]
    assert unnamed[1:] != pytest.approx(found[direction][1:], abs=1e-3)
    assert f"'{measures.UNNAMED}'" in judge.about[direction]["from"]
    # More words than CLIP reads are cut.
    assert len(judge.measure(pictures, "a cat " * 200, "")[score]) == 3


def _seen(model: CLIPModel, picture: Image.Image) -> torch.Tensor:
    small = picture.resize((32, 48), Image.Resampling.BICUBIC).crop((0, 8, 32, 40))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    spread = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = (torch.from_numpy(np.asarray(small).copy()) / 255 - mean) / spread
    with torch.no_grad():
        pooled = model.vision_model(x.movedim(-1, 0)[None].float()).pooler_output
        return torch.nn.functional.normalize(model.visual_projection(pooled)[0], dim=0)


def _said(model: CLIPModel, tokens: dict[str, list[int]]) -> torch.Tensor:
    with torch.no_grad():
        pooled = model.text_model(torch.tensor([tokens["input_ids"]])).pooler_output
        return torch.nn.functional.normalize(model.text_projection(pooled)[0], dim=0)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# ---- the curves -----------------------------------------------------------------------------


def test_curves_are_drawn_where_the_means_are_and_name_the_measures(
    kept: Store,
) -> None:
    found = scores.report(kept, RUN, [Planted(*KINDS)])
    assert [len(axes.collections) for axes in curves.picture(found).axes] == [2, 2]
    # Without the intervals, about which the axes would be centred: one mark would hide another.
    for row in found["rows"]:
        row["interval"] = dict.fromkeys(KINDS)
    figure = curves.picture(found)
    figure.set_layout_engine("none")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[::-1, :, :3]  # from below, as the axes count
    shown = ("SSIM", "CLIP score (x)")
    for axes, measure in zip(figure.axes, shown, strict=True):
        colour = curves.COLOURS[KINDS[measure]]
        for method in curves.METHODS:
            rows = [row for row in found["rows"] if row["method"] == method]
            assert len(rows) == len(RUN.etas)
            for row in rows:
                place = axes.transData.transform((row["value"], row["mean"][measure]))
                x, y = place.round().astype(int)
                # Without stage B the marks are hollow.
                around = drawn[y - 5 : y + 6, x - 5 : x + 6].reshape(-1, 3) / 255
                assert np.abs(around - to_rgb(colour)).max(1).min() < 0.1, (measure, row)
    similar, alike = figure.axes
    assert similar.get_ylim() == (0, 1) and similar.get_xlim() == (0, 1)
    assert similar.get_ylabel() == "fidelity: SSIM"
    assert alike.get_ylabel() == "alignment: CLIP score (x)"
    without = [r for r in found["rows"] if r["method"] not in ("imagic", "imagic_without_b")]
    assert curves.picture({**found, "rows": without}) is None
