"""The drawn world: exact counterfactuals, disjoint splits, captions that say what is drawn."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from miniature import captions, world
from miniature.world import Attributes

ALL = [Attributes(*c) for c in itertools.product(world.POSES, world.PLACES, world.ACCESSORIES)]


def test_the_same_arguments_give_the_same_bytes():
    who = world.identity("tuning", 3)
    again = world.identity("tuning", 3)
    assert who == again
    assert (world.render(who, ALL[5]) == world.render(again, ALL[5])).all()


def test_every_combination_of_attributes_is_a_different_picture():
    who = world.identity("tuning", 1)
    assert len({world.render(who, what).tobytes() for what in ALL}) == len(ALL)


@pytest.mark.parametrize("index", range(8))
def test_a_hat_changes_nothing_far_from_the_head(index):
    who = world.identity("tuning", index)
    plain, hat = (world.render(who, Attributes("standing", "beach", a)) for a in ("none", "hat"))
    rows, columns = np.nonzero((plain != hat).any(-1))
    assert rows.max() < 75 and len(rows) < 1500
    ahead = (columns.mean() - who.x) * who.facing
    assert ahead > 10, "the hat is where the head is"


@pytest.mark.parametrize("place", world.PLACES)
def test_stripes_are_of_the_coat_alone_and_of_one_width(place):
    who, what = world.identity("tuning", 5), Attributes("standing", place, "hat")
    plain = replace(who, marking="plain")
    before, after = (
        world.render(w, what).astype(int) for w in (plain, replace(who, marking=world.STRIPES))
    )
    coat = (before == world.coat_colour(who, place)).all(-1)
    changed = (before != after).any(-1)
    light = after.sum(-1) > before.sum(-1) + 60
    assert (light & ~coat).mean() < 0.01 and 0.3 < light[coat].mean() < 0.7
    row = np.nonzero(coat.sum(1) == coat.sum(1).max())[0][0]
    edges = np.nonzero(np.diff(changed[row, np.nonzero(coat[row])[0]]))[0]
    assert np.abs(np.diff(edges) - world.STRIPE).max() <= 1


def test_another_place_leaves_the_dogs_outline_alone():
    who = world.identity("tuning", 4)
    grass, snow = (
        (world.render(who, Attributes("sitting", p, "none")) != world.landscape(who, p)).any(-1)
        for p in ("grass", "snow")
    )
    assert (grass != snow).mean() < 0.01


def test_what_is_never_captioned_shows():
    base = world.identity("tuning", 0)
    what = Attributes("standing", "grass", "none")
    picture = world.render(base, what)
    others = {
        "hue": (base.hue + 0.3) % 1,
        "ears": next(e for e in world.EARS if e != base.ears),
        "tail": next(t for t in world.TAILS if t != base.tail),
        "marking": next(m for m in world.MARKINGS if m != base.marking),
        "leg": base.leg + 3,
        "build": base.build + 1.5,
        "x": base.x + 5,
        "scale": base.scale * 0.9,
        "facing": -base.facing,
        "sun": (60.0, 15.0),
        "clouds": ((40.0, 20.0, 1.0),),
    }
    for name, value in others.items():
        changed = world.Identity(**{**vars(base), name: value})
        assert (world.render(changed, what) != picture).any(), name


def test_splits_share_no_identity():
    dealt = list(itertools.chain(*world.SPLITS.values()))
    assert sorted(dealt) == list(range(world.HUE_PERIOD)), "each hue bin belongs to one split"
    bins = {s: {world.hue_bin(world.identity(s, i).hue) for i in range(400)} for s in world.SPLITS}
    for a, b in itertools.combinations(bins, 2):
        assert not bins[a] & bins[b], f"{a} and {b} share hues"
    assert len(bins["heldout"]) == world.HUE_BINS // world.HUE_PERIOD


def test_an_identity_that_leaks_is_noticed():
    leaked = world.identity("heldout", 0)
    assert world.split_of(leaked) == "heldout"
    moved = world.Identity(**{**vars(leaked), "hue": (leaked.hue + 1 / world.HUE_BINS) % 1})
    assert world.split_of(moved) != "heldout"


SAID = {
    "pose": {"standing": "standing", "sitting": "sitting", "jumping": "jumping", "lying": "lying"},
    "place": {
        "grass": "grass",
        "meadow": "grass",
        "beach": "beach",
        "sand": "beach",
        "snow": "snow",
        "night": "night",
        "dark": "night",
    },
    "accessory": {"hat": "hat", "scarf": "scarf"},
}


def heard(text):
    """The attributes that a caption names, by a table of the test's own."""
    words = text.split()
    found = {kind: {table[w] for w in words if w in table} for kind, table in SAID.items()}
    found["accessory"] = found["accessory"] or {"none"}
    return found


@pytest.mark.parametrize("what", ALL, ids="-".join)
def test_captions_say_what_is_drawn_and_nothing_else(what):
    rng = np.random.default_rng(0)
    wordings = {captions.caption(what, rng) for _ in range(40)} | {captions.caption(what)}
    assert len(wordings) > 8
    for text in wordings:
        assert heard(text) == {k: {v} for k, v in what._asdict().items()}, text


def test_a_place_can_be_left_out():
    text = captions.caption(Attributes("sitting", "beach", "hat"), place=False)
    assert heard(text) == {"pose": {"sitting"}, "place": set(), "accessory": {"hat"}}


def test_tokens_are_padded_and_unknown_words_are_refused():
    ids = captions.tokens("a dog")
    assert ids[:4] == [49406, 320, 1929, 49407] and len(ids) == 77 and set(ids[3:]) == {49407}
    with pytest.raises(KeyError):
        captions.tokens("a zebra")


def test_text_states_look_back_only():
    states = captions.TextStates()(["a dog on the beach", "a dog on the snow", "dog"])
    assert np.abs(states[0, :5] - states[1, :5]).max() == 0
    assert np.abs(states[0, 5] - states[1, 5]).max() > 0.5
    assert states.shape == (3, 77, captions.DIMENSIONS) and 0.8 < states.std() < 1.2
