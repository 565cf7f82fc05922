"""The TEdBench runner without servers: names, protocol, blinding, intervals."""

from __future__ import annotations

import base64
import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine.environment import TESTS
from PIL import Image

from tedbench import answers, benchmark, page, prompts, protocol, store
from tedbench.benchmark import BenchmarkError, Task
from tedbench.pictures import RUN, encoded, make_benchmark, png
from tedbench.protocol import METHODS, ProtocolError
from tedbench.store import Store

# ---- the benchmark --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photograph", "text", "name"),
    [
        ("bird.jpeg", "A bird eating a fish.", "bird.jpeg-A_bird_eating_a_fish"),
        (
            "tree_1.jpeg", "A photo of a tree. Taken in autumn.",
            "tree_1.jpeg-A_photo_of_a_tree._Taken_in_autumn",
        ),
        ("egg_tree.jpeg", "A cracked egg", "egg_tree.jpeg-A_cracked_egg"),
    ],
)  # fmt: skip
def test_results_have_the_benchmarks_own_names(photograph: str, text: str, name: str) -> None:
    assert Task(Path(photograph), text).name == name


def test_real_benchmark_is_read(tedbench: Path) -> None:
    edits = benchmark.read(tedbench)
    assert len(edits) == len({edit.name for edit in edits}) == 100
    assert len({edit.picture for edit in edits}) == 40
    four = benchmark.choose(edits, ["4"])
    assert len({edit.picture for edit in four}) == 4
    (horse,) = benchmark.choose(edits, ["zebra.jpeg-A_photo_of_a_horse.png"])
    assert horse.text == "A photo of a horse."
    assert len(benchmark.choose(edits, ["dog2_standing.png"])) == 5


def test_wanted_edits_that_are_not_there_are_named(tmp_path: Path) -> None:
    edits = make_benchmark(tmp_path, 3)
    assert benchmark.choose(edits, []) == edits
    assert [e.picture.name for e in benchmark.choose(edits, ["2"])] == ["pet0.png", "pet1.png"]
    with pytest.raises(BenchmarkError, match="no edit is called 'cat.png'.*'pet0.png'"):
        benchmark.choose(edits, ["pet1.png", "cat.png"])
    for count in ("0", "4"):
        with pytest.raises(BenchmarkError, match=f"{count} edits wanted.*1 to 3"):
            benchmark.choose(edits, [count])


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        (None, "not a folder of edits"),
        ({"a": 1}, "not a list of img_name"),
        ([{"img_name": "pet0.png"}], "not a list of img_name"),
        ([{"img_name": "gone.png", "target_text": "A"}], "gone.png is in the list"),
        ([{"img_name": "../pet0.png", "target_text": "A"}], "cannot be the name of a file"),
        ([{"img_name": "pet0.png", "target_text": "A/B"}], "cannot be the name of a file"),
        ([{"img_name": "pet0.png", "target_text": t} for t in ("A.", "A")], "two edits"),
        ([{"img_name": "pet0.png", "target_text": "A" * 300}], "cannot be the name of a file"),
    ],
)
def test_a_folder_of_another_layout_is_refused(tmp_path: Path, listed, complaint: str) -> None:
    make_benchmark(tmp_path, 1)
    file = tmp_path / "input_list.json"
    file.unlink() if listed is None else file.write_text(json.dumps(listed))
    with pytest.raises(BenchmarkError, match=complaint):
        benchmark.read(tmp_path)


# ---- the protocol ---------------------------------------------------------------------------


def test_the_same_protocol_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    protocol.begin(tmp_path / "out", RUN)
    protocol.begin(tmp_path / "out", RUN)
    assert protocol.load(tmp_path / "out") == RUN
    before = (tmp_path / "out" / protocol.FILE).read_bytes()
    changed = replace(RUN, etas=(0.0, 1.0), optimize=RUN.optimize | {"steps": 3}, cfg=7.0)
    with pytest.raises(ProtocolError) as refused:
        protocol.begin(tmp_path / "out", changed)
    told = str(refused.value)
    assert "etas: [0.0, 0.5, 1.0] there, [0.0, 1.0] now" in told
    assert "optimize: {'steps': 2, " in told and "} there, {'steps': 3, " in told
    assert "cfg: 4.0 there, 7.0 now" in told
    assert "strengths" not in told
    assert (tmp_path / "out" / protocol.FILE).read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ProtocolError, match="none of them is protocol.json"):
        protocol.begin(tmp_path, RUN)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ProtocolError, match="not the folder of a run"):
        protocol.load(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"size": 100}, {"size": 0}, {"etas": ()}, {"etas": (0.5, 0.501)}, {"strengths": (0.0, 0.5)},
     {"strengths": (1.2,)}],
)  # fmt: skip
def test_protocols_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ProtocolError):
        replace(RUN, **wrong)


def test_a_whole_photograph_keeps_its_shape_at_as_many_pixels() -> None:
    whole = replace(RUN, size=512, whole=True)
    for photograph in ((4000, 3000), (3000, 4000), (512, 512), (1920, 1080)):
        width, height = whole.shape(*photograph)
        assert width % 8 == height % 8 == 0 and width * height == pytest.approx(512**2, rel=0.03)
        assert width / height == pytest.approx(photograph[0] / photograph[1], rel=0.02)
    assert replace(whole, whole=False).shape(4000, 3000) == (512, 512)


def test_shown_setting_is_the_nearest_and_of_two_the_lower() -> None:
    assert RUN.shown("imagic") == "eta_0.50"
    assert RUN.shown("sdedit") == "strength_0.80"
    assert RUN.shown("ddib") == ""
    assert replace(RUN, etas=(1.0, 0.8, 0.6)).shown("imagic") == "eta_0.60"
    assert "the lower" in RUN.page_rule


# ---- the prompts ----------------------------------------------------------------------------


def prompt_of(method: str) -> prompts.Prompt:
    photograph = prompts.Photograph("photograph.png", 64, 64)
    return prompts.method_prompt(RUN, method, photograph, "A photo of a cat.")


def test_each_setting_is_one_picture() -> None:
    for method in METHODS:
        prompt = prompt_of(method)
        nodes = [prompts.picture_node(i) for i in range(len(RUN.settings(method)))]
        shown = {k for k, node in prompt.items() if node["class_type"] == "PreviewImage"}
        assert shown == {*nodes, prompts.SEEN}
        links = [v for node in prompt.values() for v in node["inputs"].values() if type(v) is list]
        assert {link[0] for link in links} <= set(prompt)
        assert {node["class_type"] for node in prompt.values()} <= set(prompts.NEEDED)


def test_methods_differ_by_what_the_paper_says() -> None:
    imagic, plain, sdedit, ddib = map(prompt_of, METHODS)
    assert [imagic[f"eta_{i}"]["inputs"]["eta"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert imagic["sampled_0"]["inputs"]["model"] == ["tuned", 0]
    assert plain["sampled_0"]["inputs"]["model"] == ["checkpoint", 0] and "tuned" not in plain
    # What both share must be word for word the same, or a server trains stage A twice.
    assert {k: plain[k] for k in set(plain) & set(imagic) if "sampled" not in k} == {
        k: imagic[k] for k in set(plain) & set(imagic) if "sampled" not in k
    }
    assert [sdedit[f"sampled_{i}"]["inputs"]["denoise"] for i in range(2)] == [0.4, 0.8]
    assert sdedit["sampled_0"]["inputs"]["positive"] == ["target", 0]
    assert ddib["source"]["inputs"]["text"] == "" and ddib["back"]["inputs"]["cfg"] == 1.0
    assert ddib["back"]["inputs"]["sigmas"] == ["flipped", 0]
    assert ddib["there"]["inputs"]["latent_image"] == ["back", 0]
    assert ddib["there"]["inputs"]["cfg"] == RUN.cfg
    for prompt in (imagic, plain, sdedit):
        assert {n["inputs"]["seed"] for n in prompt.values() if n["class_type"] == "KSampler"} == {
            RUN.seed
        }


# ---- the store ------------------------------------------------------------------------------


def test_a_result_without_its_pictures_is_not_done(kept: Store) -> None:
    (name, _) = kept.names()
    settings = RUN.settings("imagic")
    assert kept.is_done(name, "imagic", settings)
    kept.picture(name, "imagic", "eta_0.50").unlink()
    assert not kept.is_done(name, "imagic", settings)


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(tmp_path / "a.json", b"old")

    def broken(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(store.os, "replace", broken)
    with pytest.raises(OSError, match="power cut"):
        store.write(tmp_path / "a.json", b"new and longer")
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_a_picture_of_one_colour_is_blank() -> None:
    assert store.is_blank(encoded(Image.new("RGB", (8, 8), (3, 3, 3))))
    assert not store.is_blank(png(0))


# ---- the page -------------------------------------------------------------------------------


def data_of(folder: Path) -> dict:
    text = (folder / "page" / "index.html").read_text()
    return json.loads(re.search(r"^const data = (.*)$", text, re.M)[1])


def test_names_and_pictures_do_not_tell_the_method(kept: Store) -> None:
    assert page.write_page(kept, RUN) == 4
    told = data_of(kept.folder)
    text = (kept.folder / "page" / "index.html").read_text()
    assert not re.search(r"sdedit|ddib|eta_|strength|pet\d\.png", text.replace("SDEdit", ""))
    files = [file for trial in told["trials"] for file in trial["files"]]
    # One name for each use: else the picture that comes twice would be known for Imagic's.
    assert len(set(files)) == len(files) == 12
    on_disk = {f"pictures/{f.name}" for f in (kept.folder / "page" / "pictures").iterdir()}
    assert on_disk == set(files)
    for file in files:
        assert re.fullmatch(r"pictures/[0-9a-f]{20}\.png", file)
        content = (kept.folder / "page" / file).read_bytes()
        assert b"made by" not in content and b"tEXt" not in content


def test_pictures_are_where_the_key_says(kept: Store) -> None:
    page.write_page(kept, RUN)
    told = data_of(kept.folder)
    of_page = json.loads(base64.b64decode(told["key"]))
    key = page.load_key(kept.folder)["trials"]
    assert list(of_page) == list(key) == [t["token"] for t in told["trials"]]
    for trial in told["trials"]:
        about = key[trial["token"]]
        baseline, ours = of_page[trial["token"]]
        assert (page.BASELINES[baseline], ours) == (about["baseline"], about["ours"])
        for side, file in zip(("left", "right"), trial["files"][1:], strict=True):
            method = "imagic" if side == about["ours"] else about["baseline"]
            source = kept.picture(about["edit"], method, RUN.shown(method))
            with Image.open(source) as a, Image.open(kept.folder / "page" / file) as b:
                assert a.convert("RGB").tobytes() == b.tobytes()


def many_trials(tmp_path: Path, seed: int = 0, count: int = 120) -> list[page.Trial]:
    run = replace(RUN, seed=seed, etas=(0.7,), strengths=(0.7,))
    many = Store(tmp_path / f"many{seed}")
    for i in range(count):
        edit = Task(Path(f"pet{i}.png"), "A pet.")
        for method in ("imagic", "sdedit", "ddib"):
            many.keep(edit, method, dict.fromkeys(run.settings(method), b"x"), b"x")
    return page.trials(many, run)


def test_neither_side_nor_order_tells_the_method(tmp_path: Path) -> None:
    made = many_trials(tmp_path)
    assert len(made) == 240
    left = np.array([t.ours_left for t in made], float)
    sdedit = np.array([t.baseline == "sdedit" for t in made], float)
    # Each of these is a coin thrown 240 times: 4 standard deviations.
    assert abs(left.mean() - 0.5) < 4 * 0.5 / 240**0.5
    for hint in (np.arange(240), sdedit, np.roll(left, 1)):
        assert abs(np.corrcoef(left, hint)[0, 1]) < 4 / 240**0.5
    assert abs(np.corrcoef(sdedit, np.arange(240))[0, 1]) < 4 / 240**0.5
    first_digit = np.array([int(t.token[0], 16) for t in made])
    assert abs(np.corrcoef(left, first_digit)[0, 1]) < 4 / 240**0.5


def test_another_seed_gives_other_sides_and_order(tmp_path: Path) -> None:
    made, again = many_trials(tmp_path), many_trials(tmp_path)
    other = {(t.edit, t.baseline): t for t in many_trials(tmp_path, seed=1)}
    assert made == again
    assert [(t.edit, t.baseline) for t in made] != list(other)
    assert 60 < sum(t.ours_left == other[t.edit, t.baseline].ours_left for t in made) < 180


def test_more_edits_leave_the_choices_that_were_made(tmp_path: Path) -> None:
    few = many_trials(tmp_path, count=5)
    assert set(few) < set(many_trials(tmp_path, count=9))


def test_a_missing_picture_makes_no_choice(kept: Store) -> None:
    kept.picture(kept.names()[0], "sdedit", "strength_0.40").unlink()
    assert page.write_page(kept, RUN) == 3


# ---- the answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "of", "low", "high"),
    # Newcombe (1998), table I, method 3, and R's prop.test(correct = FALSE).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0), (0, 0, 0.0, 1.0)],
)  # fmt: skip
def test_intervals_are_wilsons(chosen: int, of: int, low: float, high: float) -> None:
    assert answers.wilson(chosen, of) == pytest.approx((low, high), abs=5e-5)


def answer_file(folder: Path, person: str, told: dict[str, str], run: str) -> Path:
    file = folder / f"{person}-{len(told)}.json"
    file.write_text(json.dumps({"run": run, "person": person, "answers": told}))
    return file


def test_planted_answers_come_back_as_rates(kept: Store, tmp_path: Path) -> None:
    page.write_page(kept, RUN)
    key = page.load_key(kept.folder)
    ours = {token: about["ours"] for token, about in key["trials"].items()}
    # One person always prefers Imagic, another only over DDIB.
    other = {"left": "right", "right": "left"}
    second = {
        token: side if key["trials"][token]["baseline"] == "ddib" else other[side]
        for token, side in ours.items()
    }
    files = [
        answer_file(tmp_path, "a", ours, key["run"]),
        answer_file(tmp_path, "b", second, key["run"]),
        # Downloaded before the end, of somebody whose whole file is there too.
        answer_file(tmp_path, "b", dict([*second.items()][:1]), key["run"]),
    ]
    text = answers.report(kept.folder, files, key)
    rows = json.loads((kept.folder / "preferences.json").read_text())["rates"]
    assert [(r["over"], r["preferred"], r["choices"]) for r in rows] == [
        ("SDEdit", 2, 4), ("DDIB", 4, 4), ("both", 6, 8),
    ]  # fmt: skip
    assert rows[0]["interval"] == pytest.approx(answers.wilson(2, 4))
    assert "| SDEdit | 50.0% | 15.0% to 85.0% | 4 |" in text and "2 people" in text


def test_answers_to_another_page_are_refused(kept: Store, tmp_path: Path) -> None:
    page.write_page(kept, RUN)
    key = page.load_key(kept.folder)
    token = next(iter(key["trials"]))
    (tmp_path / "broken.json").write_text('{"run": ')
    for file, complaint in [
        (answer_file(tmp_path, "a", {token: "left"}, "other"), "the page of another run"),
        (answer_file(tmp_path, "b", {"0123": "left"}, key["run"]), "no choice of this page"),
        (answer_file(tmp_path, "c", {token: "up"}, key["run"]), "no choice of this page"),
        (tmp_path / "broken.json", "not a file of answers"),
    ]:
        with pytest.raises(answers.AnswersError, match=complaint):
            answers.report(kept.folder, [file], key)
    assert not (kept.folder / "preferences.json").exists()


# ---- the command ----------------------------------------------------------------------------


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TESTS / "tedbench", *map(str, words)], capture_output=True, text=True
    )


def test_help_says_how_to_use_it() -> None:
    text = command("--help").stdout
    assert "answers OUT FILE" in text and "figure 8" in text
    assert runpy.run_path(str(TESTS / "tedbench" / "__main__.py"))["__doc__"] in text + "\n"


def test_report_and_answers_work_from_the_command_line(kept: Store, tmp_path: Path) -> None:
    done = command("report", kept.folder)
    assert done.returncode == 0, done.stderr
    assert "4 blind choices" in done.stdout and "| imagic | eta 0.50 (shown" in done.stdout
    assert (kept.folder / "curves.png").is_file()
    key = page.load_key(kept.folder)
    file = answer_file(tmp_path, "a", dict.fromkeys(key["trials"], "left"), key["run"])
    done = command("answers", kept.folder, file)
    assert done.returncode == 0 and "| both |" in done.stdout
    done = command("answers", kept.folder, tmp_path / "nowhere.json")
    assert done.returncode == 2 and "nowhere.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_named_before_anything_runs(tmp_path: Path) -> None:
    make_benchmark(tmp_path / "tedbench")
    done = command(
        "run", tmp_path / "tedbench", tmp_path / "out", "--checkpoint", "a.safetensors",
        "--server", "http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 2 and "http://127.0.0.1:9 does not answer" in done.stderr
    assert not (tmp_path / "out").exists()
