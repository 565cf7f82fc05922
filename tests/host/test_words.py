"""Models that embed words by themselves: what they make of the sentence is what is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import kinds
from families.newer import NEWER

from host import given

IDS, WEIGHTS = "t5xxl_ids", "t5xxl_weights"
READING = "imagic_target"
TOKENS = 512


def sentence(family, seed, ids=0):
    """As the host's CLIP Text Encode gives it: tokens, ids of a tokenizer of its own, a mask."""
    with torch.inference_mode():
        ((tokens, entries),) = kinds.conditioning(family, tokens=12, seed=seed)
        own = {
            IDS: torch.arange(ids, ids + 16, dtype=torch.int),
            WEIGHTS: torch.linspace(0.5, 1.5, 16),
            "attention_mask": torch.ones(1, 12, dtype=torch.long),
        }
        return [[tokens, {**entries, **own}]]


@pytest.fixture(scope="module")
def anima(nodes, comfy, tmp_path_factory):
    """What is wired to stage A, and what it gives."""
    if not NEWER["anima"].is_known():
        pytest.skip("this ComfyUI has no Anima, the one model that embeds words by itself")
    family, model = kinds.load("anima", tmp_path_factory.mktemp("anima"))
    target = sentence(family, seed=1)
    with torch.inference_mode():
        image = kinds.latent(family, seed=2)
    before, weights = copy.deepcopy(target), given.weights(model)
    optimized, losses = nodes.optimize(model, target, image, 4, 6e-2, 0)
    assert_same(target, before)
    given.assert_weights(model, weights)
    return SimpleNamespace(
        family=family, model=model, target=target, image=image, optimized=optimized, losses=losses
    )


def predicts(nodes, anima, conditioning, model=None):
    """The loss of the host's own sampling, which any other prediction changes."""
    return nodes.sampled_loss(model or anima.model, conditioning, anima.image, 3, "flow")


def assert_same(found, expected):
    """See that two conditionings are equal bit by bit, and remember the same."""
    for one, other in zip(_apart(found), _apart(expected), strict=True):
        given.assert_same(one, other)


def _apart(conditioning):
    ((tokens, entries),) = conditioning
    reading, digest = entries.get(READING, (tokens, ""))
    others = {key: value for key, value in entries.items() if key != READING}
    return [tokens, reading, [*digest.encode()], others]


def _print(nodes, anima, optimized):
    sentence = replace(nodes.host.read_sentence("optimized", optimized), origin=None)
    return nodes.host.fingerprint(anima.model, sentence)


def assert_wordless(conditioning):
    ((_, entries),) = conditioning
    assert not {IDS, WEIGHTS, "attention_mask"} & set(entries)


def test_every_token_that_the_model_makes_of_the_sentence_is_learned(nodes, anima):
    ((learned, entries),) = anima.optimized
    reading, _ = entries[READING]
    assert learned.shape == reading.shape == (1, TOKENS, anima.family.context_width)
    assert (learned != reading).any(-1).all()
    assert reading[:, 16:].count_nonzero() == 0 != reading[:, :16].count_nonzero()
    assert_wordless(anima.optimized)
    assert not learned.is_inference() and not reading.is_inference()
    assert predicts(nodes, anima, anima.optimized) < predicts(nodes, anima, anima.target)
    assert anima.losses["loss"][-1] < anima.losses["loss"][0]


def test_both_ends_of_eta_are_what_the_host_makes_of_both(nodes, anima):
    ends = [predicts(nodes, anima, c) for c in (anima.optimized, anima.target)]
    assert ends[0] != pytest.approx(ends[1], rel=1e-2)
    before = copy.deepcopy(anima.optimized)
    swept, _ = nodes.call("ImagicEtaSweep", anima.target, anima.optimized, 0.0, 1.0, 3)
    for edits in (swept, [nodes.interpolate(anima.target, anima.optimized, e)[0] for e in (0, 1)]):
        found = [predicts(nodes, anima, edit) for edit in (edits[0], edits[-1])]
        assert found == pytest.approx(ends, rel=1e-6)
        for edit in edits:
            assert edit[0][1].keys() == {"pooled_output"}
    assert_same(anima.optimized, before)


def test_a_projection_without_edit_is_what_was_learned(nodes, anima):
    (edit,) = nodes.call("ImagicProjectConditioning", anima.target, anima.optimized, 1.0, 0.0)
    assert torch.equal(edit[0][0], anima.optimized[0][0])
    assert_wordless(edit)
    (edit,) = nodes.call("ImagicProjectConditioning", anima.target, anima.optimized, 0.0, 1.0)
    assert not torch.equal(edit[0][0], anima.optimized[0][0])


def another(target, what):
    ((tokens, entries),) = target
    with torch.inference_mode():
        if what == "tokens":
            tokens = torch.cat([tokens[:, :-1], -tokens[:, -1:]], 1)
        elif what == "ids":
            entries = {**entries, IDS: entries[IDS].flip(0)}
        elif what == "weights":
            entries = {**entries, WEIGHTS: 2 * entries[WEIGHTS]}
        else:
            entries = {key: value for key, value in entries.items() if key != WEIGHTS}
    return [[tokens, entries]]


@pytest.mark.parametrize("what", ["tokens", "ids", "weights", "no weights"])
def test_another_sentence_is_refused_in_words(nodes, anima, what):
    other = another(anima.target, what)
    said = "'target' is not the sentence that 'optimized' was learned from.*t5xxl_ids.*Load Edit"
    for name, more in (
        ("Interpolate Conditioning", (0.5,)),
        ("Project Conditioning", (1.0, 1.0)),
        ("Eta Sweep", (0.0, 1.0, 2)),
    ):
        with pytest.raises(ValueError, match=f"^Imagic {name}: {said}"):
            nodes.call(f"Imagic{name.replace(' ', '')}", other, anima.optimized, *more)


def test_what_else_comes_with_the_sentence_may_be_another(nodes, anima):
    """Only the text is what the model reads of it; all else is as in the target."""
    ((tokens, entries),) = anima.target
    (edit,) = nodes.interpolate([[tokens, {**entries, "guidance": 3.0}]], anima.optimized, 0.5)
    assert edit[0][1]["guidance"] == 3.0


@pytest.fixture(scope="module")
def saved(nodes, anima, tmp_path_factory):
    """Stage B, and the file of both."""
    import folder_paths

    before = copy.deepcopy(anima.optimized)
    tuned, lora, _ = nodes.finetune(anima.model, anima.optimized, anima.image, "lora", 3, 1e-2, 0)
    assert_same(anima.optimized, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("output")))
        out = nodes.call("ImagicSaveEdit", anima.model, anima.optimized, anima.target, lora)
        yield SimpleNamespace(tuned=tuned, lora=lora, target=out[2], optimized=out[1], file=out[3])


def test_a_saved_edit_needs_neither_the_words_nor_the_model(nodes, anima, saved):
    _, optimized, target, _, _ = nodes.call("ImagicLoadEdit", anima.model, saved.file)
    assert_wordless(target)
    assert saved.target is anima.target
    # What it was learned from is the file's own.
    told = optimized[0][1] | {"imagic_origin": anima.optimized[0][1]["imagic_origin"]}
    for one in (saved.optimized, anima.optimized):
        assert_same([[optimized[0][0], told]], one)
    prints = [_print(nodes, anima, one) for one in (optimized, anima.optimized)]
    assert prints[0] == prints[1]  # so that stage B finds again what it learned of it
    (expected,) = nodes.interpolate(anima.target, anima.optimized, 0.7)
    for one in (target, saved.target, anima.target):
        assert_same(nodes.interpolate(one, optimized, 0.7)[0], expected)
    with pytest.raises(ValueError, match="Interpolate Conditioning: 'target' is not the sentence"):
        nodes.interpolate(another(anima.target, "ids"), optimized, 0.7)


def test_a_saved_edit_takes_another_sentence(nodes, anima, saved):
    other = sentence(anima.family, seed=7, ids=40)
    before = copy.deepcopy(other)
    tuned, optimized, target, _, _ = nodes.call("ImagicLoadEdit", anima.model, saved.file, other)
    assert_same(other, before)
    assert_wordless(target)
    edit = nodes.interpolate(target, optimized, 1.0)[0]
    expected = predicts(nodes, anima, other, tuned)
    assert predicts(nodes, anima, edit, tuned) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(predicts(nodes, anima, anima.target, tuned), rel=1e-3)


def test_another_sentence_is_not_saved_with_what_was_learned(nodes, anima, saved):
    other = another(anima.target, "ids")
    with pytest.raises(ValueError, match="^Imagic Save Edit: 'target' is not the sentence"):
        nodes.call("ImagicSaveEdit", anima.model, anima.optimized, other, saved.lora)


def test_the_fine_tuned_model_draws_the_edit(nodes, anima, saved):
    import nodes as host_nodes

    assert predicts(nodes, anima, anima.optimized, saved.tuned) < predicts(
        nodes, anima, anima.optimized
    )
    negative = sentence(anima.family, seed=9, ids=60)
    for positive in (nodes.interpolate(anima.target, anima.optimized, 0.7)[0], anima.optimized):
        with torch.inference_mode():
            drawn = host_nodes.common_ksampler(
                saved.tuned, 5, 2, 2.0, "euler", "simple", positive, negative, anima.image
            )[0]["samples"]
        assert torch.isfinite(drawn).all()


def test_a_learned_sentence_of_another_target_is_another_to_stage_b(nodes, anima):
    ((tokens, entries),) = anima.optimized
    reading, digest = entries[READING]
    prints = {
        _print(nodes, anima, one)
        for one in (
            anima.optimized,
            [[tokens, {**entries, READING: [reading + 1, digest]}]],
            [[tokens, {**entries, READING: [reading, digest[::-1]]}]],
        )
    }
    assert len(prints) == 3


def test_a_text_encoder_of_another_model_is_told_of(nodes, anima):
    ((tokens, entries),) = anima.target
    with torch.inference_mode():
        wider = [[torch.cat([tokens, tokens], -1), entries]]
    with pytest.raises(ValueError, match=r"cannot take 'target' with tokens \(1, 12, 128\)"):
        nodes.optimize(anima.model, wider, anima.image, 1, 1e-2, 0)


def test_words_that_the_model_takes_no_notice_of_stay(nodes, model):
    ((tokens, entries),) = given.conditioning()
    ids = torch.arange(5, dtype=torch.int)
    target = [[tokens, {**entries, IDS: ids}]]
    assert nodes.host.read_by(model, (found := nodes.host.read_sentence("target", target))) is found
    optimized, _ = nodes.optimize(model, target, given.latent(), 1, 1e-2, 0)
    (edit,) = nodes.interpolate(target, optimized, 0.5)
    assert edit[0][1].keys() == {"pooled_output", IDS}
    assert optimized[0][1].keys() == {"pooled_output", IDS, "imagic_origin"}


def test_a_model_that_makes_more_of_words_than_an_embedding_keeps_them(nodes, anima, monkeypatch):
    """What it gets of an embedding alone would be something else."""
    of_both = type(anima.model.model).extra_conds

    def more(model, **entries):
        import comfy.conds

        counted = {} if IDS not in entries else {"y": comfy.conds.CONDConstant(16)}
        return {**of_both(model, **entries), **counted}

    monkeypatch.setattr(type(anima.model.model), "extra_conds", more)
    found = nodes.host.read_sentence("target", anima.target)
    assert nodes.host.read_by(anima.model, found) is found
