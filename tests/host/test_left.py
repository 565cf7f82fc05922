"""What stage B says of the sentence: how much of what it changes is left."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from host import given

HIGH = 1.0
"""A learning_rate at which a model draws the photograph whatever it is told."""


@pytest.fixture
def said(nodes, monkeypatch):
    """The lines that stage B shows on its node beside those of each training."""
    lines = []
    monkeypatch.setattr(nodes.module.nodes.finetune_model, "say", lines.append)
    return lines


@pytest.fixture(scope="module")
def learned(nodes, model):
    """A target, the photograph, and what stage A made of the first."""
    text, image = given.conditioning(), given.latent()
    return text, image, nodes.optimize(model, text, image, 8, 0.1, 0, batch_size=2)[0]


def finetune(nodes, model, optimized, image, rate, steps=24, **how):
    return nodes.finetune(
        model, optimized, image, "lora", steps, rate, 0, batch_size=2, rank=4, **how
    )


def share(line):
    return int(re.match(r"(\d+)% of what your sentence changes is left", line)[1])


def test_the_less_is_left_the_further_the_model_is_moved(nodes, model, learned, said, caplog):
    _, image, optimized = learned
    with caplog.at_level(logging.WARNING):
        for rate in (0.0, 0.02, HIGH):
            finetune(nodes, model, optimized, image, rate)
    none, little, much = map(share, said)
    assert none == 100 and much < little
    assert much < 50 and "lower learning_rate" in said[2] and said[2] in caplog.text
    assert "lower learning_rate" not in said[0] and said[0] not in caplog.text


def test_it_is_the_distance_of_what_the_host_samples_with_both(nodes, model, learned, said):
    """Asked of the MODEL that comes back, and of the one that came in."""
    text, image, optimized = learned
    tuned = finetune(nodes, model, optimized, image, 0.1)[0]
    apart, distance = nodes.core.left.apart, {}
    one, other = (nodes.host.read_sentence("text", c).embedding for c in (optimized, text))
    for name, each in (("loaded", model), ("tuned", tuned)):
        with torch.inference_mode(), nodes.session(each, text, image) as s:
            distance[name] = apart(s.denoiser, s.photographs, one, other, seed=0, at_once=1)
    assert share(said[0]) == round(100 * distance["tuned"] / distance["loaded"])


def test_what_is_learned_does_not_hang_on_it(nodes, model, learned, said):
    _, image, optimized = learned
    tokens, entries = optimized[0]
    bare = [[tokens, {k: v for k, v in entries.items() if k != "imagic_origin"}]]
    found, expected = (finetune(nodes, model, c, image, 0.1)[1] for c in (optimized, bare))
    given.assert_same(found, expected)
    assert len(said) == 1, "nothing is known of the target of the other"


def test_a_training_that_was_done_before_says_it_again(nodes, model, learned, said):
    _, image, optimized = learned
    losses = [
        finetune(nodes, model, optimized, image, 0.1, steps=3, keep=True)[2] for _ in range(2)
    ]
    assert losses[0] == losses[1]
    assert said[0] == said[-1] and share(said[0]) and len(said) == 2


@pytest.mark.parametrize(
    "spoilt", [None, 3, {}, {"tokens": torch.zeros(1, 5, 768), "pooled": torch.zeros(1, 768)}]
)
def test_a_sentence_that_others_have_changed_says_nothing(nodes, model, learned, said, spoilt):
    _, image, (entry,) = learned
    finetune(nodes, model, [[entry[0], entry[1] | {"imagic_origin": spoilt}]], image, 0.1, steps=1)
    assert said == []


def test_going_on_from_what_was_learned_says_nothing(nodes, model, learned, said):
    _, image, optimized = learned
    lora = finetune(nodes, model, optimized, image, 0.1, steps=2)[1]
    finetune(nodes, model, optimized, image, 0.1, steps=2, lora=lora)
    assert len(said) == 1


def test_the_target_goes_no_further_than_the_trainings(nodes, model, learned):
    text, _, optimized = learned
    origin = optimized[0][1]["imagic_origin"]
    assert origin["tokens"].equal(text[0][0])
    assert origin["pooled"].equal(text[0][1]["pooled_output"])
    mixed = nodes.interpolate(text, optimized, 0.5)[0]
    assert "imagic_origin" not in mixed[0][1]


def test_the_host_samples_with_it_as_without(nodes, model, learned):
    _, image, (entry,) = learned
    plain = [[entry[0], {k: v for k, v in entry[1].items() if k != "imagic_origin"}]]
    pictures = [
        nodes.call("KSampler", model, 5, 2, 2.0, "euler", "normal", c, c, image)[0]["samples"]
        for c in ([entry], plain)
    ]
    assert pictures[0].equal(pictures[1])
