"""Edit files: what is kept, what is refused, and that writing is all or nothing."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from imagic_core import edit_file
from imagic_core.edit import Edit, Sentence
from imagic_core.edit_file import EditFileError, LaterVersionError
from imagic_core.objective import Embedding

LAYER = "diffusion_model.block"


def lora(rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{LAYER}.lora_up.weight": torch.randn(6, rank),
        f"{LAYER}.lora_down.weight": torch.randn(rank, 36),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }


@pytest.fixture
def edit() -> Edit:
    torch.manual_seed(0)
    options = {"guidance": 3.5, "mask": torch.ones(1, 5, dtype=torch.int64), "many": [1, None]}
    target = Sentence(Embedding(torch.randn(1, 5, 8), torch.randn(1, 8)), options)
    optimized = Sentence(Embedding(torch.randn(1, 5, 8), torch.randn(1, 8)), options)
    return Edit(target, optimized, lora(), {"sentence": "a sitting dog", "losses": [0.5, 0.25]})


@pytest.fixture
def file(tmp_path, edit):
    path = tmp_path / "edit.safetensors"
    edit_file.write(path, edit)
    return path


def assert_same(read: Edit, edit: Edit) -> None:
    for name in ("target", "optimized"):
        a, b = getattr(read, name), getattr(edit, name)
        for x, y in zip(a.embedding.tensors(), b.embedding.tensors(), strict=True):
            assert torch.equal(x, y) and x.dtype == y.dtype
        assert a.options["guidance"] == 3.5 and a.options["many"] == [1, None]
        assert torch.equal(a.options["mask"], b.options["mask"])
        assert a.options["mask"].dtype == torch.int64
    assert read.weights.keys() == edit.weights.keys()
    assert all(torch.equal(read.weights[k], edit.weights[k]) for k in read.weights)
    assert read.about == edit.about


def test_what_is_written_is_read(file, edit):
    assert_same(edit_file.read(file), edit)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_an_edit_without_pooled_vector_and_options(tmp_path, edit):
    bare = Sentence(Embedding(torch.randn(1, 5, 8)), {})
    edit_file.write(tmp_path / "bare", replace(edit, target=bare, optimized=bare))
    read = edit_file.read(tmp_path / "bare")
    assert read.target.embedding.pooled is None and read.target.options == {}


def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path, edit):
    strange = Sentence(edit.target.embedding, {"hooks": object()})
    with pytest.raises(EditFileError, match="'hooks' of 'target' is object"):
        edit_file.write(tmp_path / "edit.safetensors", replace(edit, target=strange))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["save_file", "replace"])
def test_a_failed_write_leaves_the_old_file(file, edit, monkeypatch, step):
    before = file.read_bytes()

    def fails(*_args):
        raise OSError("no space left on device")

    if step == "replace":
        monkeypatch.setattr(os, "replace", fails)
    else:

        def half(_tensors, path, _metadata):
            path.write_bytes(b"half")
            fails()

        monkeypatch.setattr(edit_file, "save_file", half)
    with pytest.raises(OSError, match="no space"):
        edit_file.write(file, edit)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


# ---- hostile, foreign and broken files -------------------------------------------------------


def content(file) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()  # noqa: SIM118


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -500])
def test_a_truncated_file_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(EditFileError, match="truncated|claims"):
        edit_file.read(file)


def test_a_file_with_more_at_its_end_is_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(EditFileError, match="damaged"):
        edit_file.read(file)


@pytest.mark.parametrize("size", [2**20, edit_file.MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(file, size, monkeypatch):
    monkeypatch.setattr(edit_file, "safe_open", lambda *_: pytest.fail("the header was read"))
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    with pytest.raises(EditFileError, match=f"claims a header of {size}"):
        edit_file.read(file)


def test_a_huge_header_that_is_really_there_is_refused(file, monkeypatch):
    monkeypatch.setattr(edit_file, "MAX_HEADER", 200)
    with pytest.raises(EditFileError, match="claims a header"):
        edit_file.read(file)


def test_a_pickle_is_refused_unopened(tmp_path):
    path = tmp_path / "edit.safetensors"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save(Evil(), path)
    with pytest.raises(EditFileError):
        edit_file.read(path)
    assert not (tmp_path / "owned").exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(lora(), path, {"format": "pt"})
    with pytest.raises(EditFileError, match="not an edit"):
        edit_file.read(path)
    save_file(lora(), path)
    with pytest.raises(EditFileError, match="not an edit"):
        edit_file.read(path)


@pytest.mark.parametrize("version", ["3", "10", "0", "", "1.5", "²", "9" * 5000])
def test_another_version_is_refused_and_a_later_one_called_so(file, version):
    tensors, metadata = content(file)
    save_file(tensors, file, metadata | {"version": version})
    with pytest.raises(EditFileError, match="this pack reads 1 and 2") as refused:
        edit_file.read(file)
    assert isinstance(refused.value, LaterVersionError) == (version in ("3", "10"))
    assert ("older than the file" in str(refused.value)) == (version in ("3", "10"))


def test_sentences_of_different_lengths_are_kept(tmp_path, edit):
    shorter = replace(edit.target, embedding=Embedding(torch.randn(1, 3, 8), torch.randn(1, 8)))
    edit_file.write(tmp_path / "edit", replace(edit, target=shorter))
    read = edit_file.read(tmp_path / "edit")
    assert torch.equal(read.target.embedding.tokens, shorter.embedding.tokens)


@pytest.fixture
def wide(edit):
    """An edit of a sentence that three text encoders have read."""

    def more(sentence):
        embedding = replace(sentence.embedding, more={"conditioning_x": torch.randn(1, 2, 5, 4)})
        return sentence.with_embedding(embedding)

    return replace(edit, target=more(edit.target), optimized=more(edit.optimized))


def test_text_of_further_encoders_is_kept_in_version_2(tmp_path, file, edit, wide):
    path = tmp_path / "wide.safetensors"
    edit_file.write(path, wide)
    assert_same(edit_file.read(path), wide)
    assert "conditioning_x" in edit_file.read(path).target.embedding.more
    assert content(path)[1]["version"] == "2"
    # What older packs can read says so.
    assert content(file)[1]["version"] == "1"
    assert_same(edit_file.read(file), edit)


@pytest.mark.parametrize("tampered", ["missing", "shape", "twice"])
def test_text_of_further_encoders_is_checked(tmp_path, wide, tampered):
    path = tmp_path / "wide.safetensors"
    if tampered == "twice":
        options = wide.target.options | {"conditioning_x": 1.0}
        wide = replace(wide, target=replace(wide.target, options=options))
    edit_file.write(path, wide)
    tensors, metadata = content(path)
    if tampered == "missing":
        del tensors["target.text.conditioning_x"]
    if tampered == "shape":
        tensors["target.text.conditioning_x"] = torch.zeros(1, 3, 5, 4)
    save_file(tensors, path, metadata)
    with pytest.raises(EditFileError, match="a second time" if tampered == "twice" else "of shape"):
        edit_file.read(path)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


TAMPERED = {
    "lacks 'optimized.tokens'": lambda t: t.pop("optimized.tokens"),
    "lacks 'target.option": lambda t: t.pop(next(k for k in t if k.startswith("target.option"))),
    "lacks the weights": lambda t: [t.pop(k) for k in list(t) if k.startswith("weights.")],
    "pooled of shape None in target": lambda t: t.pop("target.pooled"),
    r"tokens of shape \(1, 5, 9\) in target": put("target.tokens", torch.zeros(1, 5, 9)),
    "number format I32": put("optimized.tokens", torch.zeros(1, 5, 8, dtype=torch.int32)),
    "number format F64": put("weights.x.diff", torch.zeros(2, dtype=torch.float64)),
    "NaN or infinity in 'target.tokens'": put("target.tokens", torch.full((1, 5, 8), torch.nan)),
    "infinity in 'weights.x.diff'": put("weights.x.diff", torch.tensor([torch.inf])),
    "no edit has, '../evil'": put("../evil", torch.zeros(1)),
    "no edit has, 'target.tokens.x'": put("target.tokens.x", torch.zeros(1)),
    "empty shape": put("weights.x.diff", torch.zeros(0, 4)),
}


@pytest.mark.parametrize("message", TAMPERED)
def test_tensors_that_do_not_belong_together_are_refused(file, message):
    tensors, metadata = content(file)
    TAMPERED[message](tensors)
    save_file(tensors, file, metadata)
    with pytest.raises(EditFileError, match=message):
        edit_file.read(file)


def test_tokens_that_are_no_single_sentence_are_refused(file):
    tensors, metadata = content(file)
    for name in ("target", "optimized"):
        tensors[f"{name}.tokens"] = torch.zeros(2, 5, 8)
    save_file(tensors, file, metadata)
    with pytest.raises(EditFileError, match=r"tokens of shape \(2, 5, 8\)"):
        edit_file.read(file)


DEEP = '{"options": {"target": {"a": %s}, "optimized": {}}, "about": {}}'


@pytest.mark.parametrize(
    "description",
    [
        "",
        "[]",
        "{",
        '{"options": 3, "about": {}}',
        '{"options": {"target": {}}, "about": {}}',
        '{"options": {"target": {}, "optimized": {}}, "about": 3}',
        "[" * 100_000,
        DEEP % ("[" * 500 + "]" * 500),
        DEEP % '{"tensor": ["x"]}',
        DEEP % '{"tensor": "weights.nothing"}',
        DEEP.replace('"a"', '"pooled_output"') % "3",
    ],
)
def test_a_damaged_description_is_refused(file, description):
    tensors, metadata = content(file)
    save_file(tensors, file, metadata | {"edit": description})
    with pytest.raises(EditFileError):
        edit_file.read(file)


def test_the_description_is_json_that_others_can_read(file):
    _, metadata = content(file)
    assert json.loads(metadata["edit"])["about"]["sentence"] == "a sitting dog"
