"""The benchmark's rules: how a setting is chosen, what counts as nearer, which edits are asked."""

from types import SimpleNamespace

import numpy as np
import pytest
from miniature import edits, world

from benchmarks import counterfactual, edit_tables, samples
from imagic_core import finetune

REACHED = {0.9: True, 0.3: False, 0.7: True, 0.5: True}


@pytest.mark.parametrize("method,expected", [("sdedit", 0.5), ("imagic", 0.7)])
def test_of_the_settings_that_reach_the_edit_the_rule_takes_one(method, expected):
    assert counterfactual.choose(counterfactual.METHODS[method], REACHED) == expected


def test_the_only_setting_that_reaches_the_edit_is_taken():
    only = {0.3: False, 0.9: True, 0.5: False}
    assert counterfactual.choose(counterfactual.METHODS["imagic"], only) == 0.9


def test_the_default_is_taken_where_nothing_reaches_it():
    nothing = dict.fromkeys(REACHED, False)
    assert counterfactual.choose(counterfactual.METHODS["imagic"], nothing) == 0.9


@pytest.mark.parametrize(
    "default,settings",
    [
        (counterfactual.DEFAULT_ETA, counterfactual.ETAS),
        (counterfactual.DEFAULT_STRENGTH, counterfactual.STRENGTHS),
    ],
)
def test_defaults_are_on_the_grid(default, settings):
    assert default in settings
    assert 0.0 in counterfactual.ETAS, "eta 0 is the reconstruction"


def test_table_compares_edit_by_edit_and_kept_needs_reached():
    def found(*psnrs, reached=True):
        return [
            {
                "edit": f"{number:03d}",
                "seed": 5,
                "reached": reached,
                "kept": True,
                "seen": True,
                "psnr": p,
                "ssim": 0.5,
                "reconstruction": 20.0,
                "autoencoder": 21.0,
            }
            for number, p in enumerate(psnrs)
        ]

    rows = edit_tables.table(
        {
            "imagic": found(20, 10, 16, 16),
            "sdedit": found(15, 15, 15, 17),
            "nothing done": found(1, 2, 3, 4, reached=False),
            "imagic, paper": found(16, 10),
        }
    )
    assert rows["imagic, paper"]["nearer_than_sdedit"] == 0.5, "of the edits that it has"
    assert rows["imagic"]["nearer_than_sdedit"] == 0.5
    assert rows["imagic"]["psnr_to_truth"] == 15.5
    assert rows["nothing done"]["success"] == rows["nothing done"]["kept"] == 0
    assert "nearer_than_sdedit" not in rows["sdedit"]
    lines = edit_tables.for_readme(rows).splitlines()
    assert lines[2] == "| Imagic | 100 % | 100 % | 15.5 dB | 50 % | | 20.0 dB |"
    assert [line.split(" | ")[0][2:] for line in lines[3:]] == [
        "Imagic by the paper's recipe",
        "SDEdit",
        "the photograph, nothing done",
    ]


def test_edits_are_of_held_out_dogs_and_change_one_attribute():
    asked = edits.edits(12)
    assert [e.kind for e in asked[:3]] == list(edits.KINDS)
    for edit in asked:
        assert world.split_of(edit.who) == "heldout"
        assert (edit.truth == world.render(edit.who, edit.wanted)).all()
        assert (edit.source != edit.truth).any()
        before, after = set(edit.source_text.split()), set(edit.target_text.split())
        assert before != after and "dog" in before & after
    again = edits.edits(12)
    assert all((a.source == b.source).all() for a, b in zip(asked, again, strict=True))


def test_parts_put_together_are_the_whole(tmp_path):
    def one(number, psnr):
        edit, seed = divmod(number, 2)
        return {
            "edit": f"{edit:03d} pose",
            "seed": seed,
            "reached": True,
            "kept": True,
            "seen": True,
            "psnr": psnr,
            "ssim": 0.5,
            "likeness": psnr,
        }

    for part, numbers in (("a", (2, 1)), ("b", (0, 3))):
        edit_tables.write(
            tmp_path / part,
            {
                "sdedit": [one(n, 10.0 + n) for n in numbers],
                "ddib": [one(n, 10.5 + n % 2) for n in reversed(numbers)],
            },
            "some",
        )
    results, network = edit_tables.merge([tmp_path / "a", tmp_path / "b"])
    assert network == "some"
    assert [e["psnr"] for e in results["sdedit"]] == [10, 11, 12, 13]
    rows = edit_tables.table(results)
    assert rows["sdedit"]["nearer_than_ddib"] == 0.5
    assert rows["ddib"]["psnr_to_truth"] == 11


def test_every_seed_of_an_edit_is_judged_by_its_own_pictures(monkeypatch):
    edit = edits.edits(1)[0]
    right, wrong = {0.0: edit.truth}, {0.0: edit.source}
    method = counterfactual.Method(lambda host, edit: {5: right, 6: wrong})
    monkeypatch.setitem(counterfactual.METHODS, "made up", method)
    found, shown = counterfactual.run(None, edit, "made up", edits.Judge())
    told = [(f["seed"], f["reached"], f["seen"]) for f in found]
    assert told == [(5, True, True), (6, False, False)]
    assert found[0]["psnr"] > 90 > found[1]["psnr"]
    assert shown[0] is edit.truth


def test_of_an_edits_seeds_the_one_is_taken_that_reaches_it_and_is_most_like_the_photograph():
    def one(edit, reached, likeness, psnr):
        return {"edit": edit, "reached": reached, "likeness": likeness, "psnr": psnr}

    taken = edit_tables.best(
        {
            "imagic": [
                one("a", False, 0.9, 1),
                one("a", True, 0.4, 30),
                one("a", True, 0.6, 2),
                one("b", False, 0.2, 30),
                one("b", False, 0.3, 3),
            ]
        }
    )
    assert [(e["edit"], e["psnr"]) for e in taken["imagic"]] == [("a", 2), ("b", 3)]


class Learning:
    """Stands in for the pack: counts the trainings, and says of which photograph and recipe."""

    core = SimpleNamespace(finetune=finetune)
    calls = 0

    def defaults(self, stage):
        return {"recipe": "as set"}

    def optimize(self, model, target, image, recipe):
        self.calls += 1
        return f"{image} {recipe}", None

    def finetune(self, model, optimized, image, **inputs):
        self.calls += 1
        return f"{optimized} B by {inputs['recipe']}", None, None

    def finetune_by(self, settings, method, wires):
        self.calls += 1
        return f"{wires[1]} B at {settings.learning_rate} {method}", None


def test_what_was_learned_serves_again_but_no_other_edit_and_no_other_recipe():
    pack = Learning()
    host = SimpleNamespace(learned=(), model=None, pack=pack, say=str, encode=str)
    one, two = (SimpleNamespace(name=n, source=n, target_text="") for n in ("one", "two"))
    asked = [(one, "as set"), (one, "as set"), (one, "fast"), (one, "paper"), (two, "paper")]
    found = [counterfactual.learn(host, edit, recipe) for edit, recipe in asked]
    assert [e for e, _ in found] == [f"{edit.name} {recipe}" for edit, recipe in asked]
    assert [model for _, model in found] == [
        "one as set B by as set",
        "one as set B by as set",
        "one fast B by fast",
        "one paper B at 4e-06 full",
        "two paper B at 4e-06 full",
    ]
    assert pack.calls == 2 * 4, "two stages, each of four different ones once"


def world_of_noise(seed, count):
    return np.random.default_rng(seed).integers(0, 250, (count, 128, 128, 3)).astype(np.uint8)


def test_a_copy_is_told_from_a_picture_that_only_looks_like_the_training():
    trained, unseen, other = (world_of_noise(seed, 40) for seed in (1, 2, 3))
    copies = samples.compare(trained[:10] + 1, trained, unseen)
    assert copies["nearer_to_training"] == 1
    assert copies["training"][2] == pytest.approx(1) and copies["unseen"][0] > 2
    fair = samples.compare(other, trained, unseen)
    assert 0.2 < fair["nearer_to_training"] < 0.8
    assert samples.compare(trained[:10], unseen, trained)["nearer_to_training"] == 0
