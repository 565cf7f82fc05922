"""The runner's jobs, on workers in this process over servers that stand in for ComfyUI."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tedbench import benchmark
from tedbench.pictures import RUN, encoded, png
from tedbench.protocol import METHODS
from tedbench.servers import Unusable, check
from tedbench.stand_in import Prompt, described, kind, text
from tedbench.trial import Trial


def test_all_methods_are_run_and_come_back_once(trial: Trial, start) -> None:
    server = start()
    trial.run(server)
    assert [kind(prompt) for prompt in server.ran] == [*METHODS] * 2
    assert trial.done() == set(trial.store.came) and len(trial.done()) == 8
    assert set(trial.store.came.values()) == {1} and trial.store.failures() == []
    first = trial.edits[0]
    lying = trial.store.folder / "imagic" / "eta_0.50" / "pet0.png-A_photo_of_pet_0_sitting.png"
    assert lying.is_file()
    assert trial.store.record(first.name, "imagic")["seconds"] == 2.0
    # The server's own folders stay as they were.
    assert all('name="type"\r\n\r\ntemp\r\n' in fields for fields in server.fields)
    assert server.uploads["photograph.png"] == trial.edits[1].picture.read_bytes()


def test_what_is_done_is_not_done_again(trial: Trial, start) -> None:
    server = start()
    trial.run(server, methods=("imagic", "sdedit"), edits=trial.edits[:1])
    assert [kind(prompt) for prompt in server.ran] == ["imagic", "sdedit"]
    name = trial.edits[0].name
    trial.store.picture(name, "sdedit", "strength_0.40").unlink()
    again = start()
    trial.run(again, edits=trial.edits[:1])
    assert [kind(prompt) for prompt in again.ran] == ["imagic_without_b", "sdedit", "ddib"]
    finished = start()
    trial.run(finished, edits=trial.edits[:1])
    assert finished.ran == [] and trial.said[-1] == "0 methods to run on 0 edits"


def test_servers_share_the_work_and_each_does_one_thing_at_a_time(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 6)
    servers = start(seconds=0.05), start(seconds=0.05)
    trial.run(*servers)
    assert len(trial.done()) == 24 and set(trial.store.came.values()) == {1}
    assert min(len(server.ran) for server in servers) >= 6
    assert [server.longest for server in servers] == [1, 1]
    # What shares stage A stays with one server, which thus trains it once.
    for edit in trial.edits:
        places = {
            trial.store.record(edit.name, method)["server"]
            for method in ("imagic", "imagic_without_b")
        }
        assert len(places) == 1


def test_a_failing_prompt_is_recorded_and_stops_nothing(trial: Trial, start) -> None:
    def trouble(prompt: Prompt) -> str | None:
        mine = text(prompt).startswith("A photo of pet 0")
        return "out of memory" if mine and kind(prompt) == "imagic" else None

    trial.run(start(trouble=trouble))
    ((name, method, error),) = trial.store.failures()
    assert (name, method) == (trial.edits[0].name, "imagic")
    assert error == "KSampler: out of memory"
    assert len(trial.done()) == 7
    assert any("FAILED" in line and "out of memory" in line for line in trial.said)

    mended = start()
    trial.run(mended)
    assert [kind(prompt) for prompt in mended.ran] == ["imagic"]
    assert trial.store.failures() == [] and len(trial.done()) == 8


def test_a_rejected_prompt_is_recorded(tmp_path: Path, start) -> None:
    trial = Trial(tmp_path, 1)
    listed = [{"img_name": "pet0.png", "target_text": "Reject me"}]
    (tmp_path / "tedbench" / "input_list.json").write_text(json.dumps(listed))
    trial.edits = benchmark.read(tmp_path / "tedbench")
    server = start()
    trial.run(server)
    assert server.ran == []
    assert {method for _, method, _ in trial.store.failures()} == set(METHODS)
    assert all("not this one" in error for *_, error in trial.store.failures())


def test_a_blank_picture_and_a_photograph_that_is_none_are_failures(trial: Trial, start) -> None:
    server = start()
    server.draw = lambda _: encoded(Image.new("RGB", (8, 8)))
    trial.edits[1].picture.write_bytes(b"a letter")
    trial.run(server, methods=("ddib",))
    (blank, none) = (error for *_, error in trial.store.failures())
    assert blank == "the picture has one colour only: ddib"
    assert "cannot identify image file" in none


def test_a_forgotten_prompt_is_a_failure(trial: Trial, start) -> None:
    server = start(seconds=0.05)

    def forgets(prompt: Prompt) -> None:
        server.queue.clear()
        server.history = type("Forgetful", (dict,), {"__setitem__": lambda *_: None})()

    server.trouble = forgets
    trial.run(server, methods=("sdedit",), edits=trial.edits[:1])
    ((_, _, error),) = trial.store.failures()
    assert "does not know it any more" in error


@pytest.mark.parametrize(("whole", "shape"), [(False, (128, 128)), (True, (176, 96))])
def test_a_photograph_is_edited_as_the_protocol_says(
    trial: Trial, start, whole: bool, shape: tuple[int, int]
) -> None:
    server = start()
    with Image.open(trial.edits[0].picture) as square:
        trial.edits[0].picture.write_bytes(encoded(square.resize((300, 160))))
    protocol = replace(RUN, size=128, whole=whole)
    trial.run(server, methods=("ddib",), edits=trial.edits[:1], protocol=protocol)
    scaled = server.ran[0]["input"]["inputs"]
    assert (scaled["width"], scaled["height"]) == shape


def test_any_folder_of_photographs_with_sentences_is_run(tmp_path: Path, start) -> None:
    folder = tmp_path / "studio"
    folder.mkdir()
    listed = [
        {"img_name": f"{i}.png", "target_text": "A red chair.", "source_text": f"A chair {i}."}
        for i in range(2)
    ]
    for i, one in enumerate(listed):
        (folder / one["img_name"]).write_bytes(png(i))
    (folder / "input_list.json").write_text(json.dumps(listed))
    trial, server = Trial(tmp_path), start()
    trial.run(server, edits=benchmark.read(folder), methods=("imagic",))
    assert [text(prompt) for prompt in server.ran] == ["A red chair."] * 2
    assert (trial.store.folder / "imagic" / "eta_1.00" / "1.png-A_red_chair.png").is_file()
    assert trial.store.record("1.png-A_red_chair", "imagic")["source"] == "A chair 1."


def test_a_worker_that_cannot_run_the_protocol_says_why(trial: Trial, start) -> None:
    other = replace(RUN, checkpoint="other.safetensors")
    trial.run(start(), methods=("ddib",), edits=trial.edits[:1], protocol=other)
    ((_, _, error),) = trial.store.failures()
    assert "no 'other.safetensors', only tiny.safetensors" in error


def test_servers_that_cannot_take_part_are_told_what_they_lack() -> None:
    nodes = described()
    check("here", nodes, RUN)
    for wrong, complaint in [
        (replace(RUN, checkpoint="b.safetensors"), "here: .*no 'b.safetensors', only tiny"),
        (replace(RUN, finetune={"steps": 2}), "another version of the pack: ImagicFinetuneModel"),
    ]:
        with pytest.raises(Unusable, match=complaint):
            check("here", nodes, wrong)
