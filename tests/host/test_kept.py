"""What was learned is not learned twice; what was broken off goes on and ends the same."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import kinds
from machine import imagic

from host import given
from host.test_faults import small_files_only
from host.test_host_state import ended

STEPS = 5


class _Stop(Exception):
    """Stands for whatever may go wrong in the middle of a training."""


@pytest.fixture
def shelf(nodes, tmp_path) -> Iterator[Path]:
    """Where it is kept: in a user folder that is empty."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield nodes.module.nodes.kept.folder()
    folder_paths.set_user_directory(before)


def keep_each_step(nodes: imagic.Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only what is broken off."""
    monkeypatch.setattr(nodes.module.nodes.kept, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(nodes.module.nodes.kept, "SHARE_OF_TIME", 1e9)


@pytest.fixture
def steps(nodes, monkeypatch) -> list[int]:
    """The numbers of the steps that are trained."""
    done: list[int] = []
    reporter = nodes.module.nodes.progress.Reporter
    report = reporter.__call__

    def on_step(self: Any, progress: Any) -> None:
        done.append(progress.step)
        report(self, progress)

    monkeypatch.setattr(reporter, "__call__", on_step)
    return done


@pytest.fixture
def said(nodes, monkeypatch) -> list[str]:
    """What is said on the node."""
    lines: list[str] = []
    for module in (nodes.module.nodes.progress, nodes.module.nodes.train):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def run(nodes: imagic.Pack, model: Any, stage: str, keep: bool = True, **how: Any) -> list[Any]:
    """All that a stage gives, as tensors and numbers."""
    text, latent, how = given.conditioning(), given.latent(count=2), {"batch_size": 2} | how
    if stage == "A":
        optimized, losses = nodes.optimize(model, text, latent, STEPS, 1e-2, 3, keep=keep, **how)
        return [optimized[0][0], optimized[0][1]["pooled_output"], losses["loss"]]
    _, lora, losses = nodes.finetune(model, text, latent, stage, STEPS, 1e-4, 3, keep=keep, **how)
    return [dict(sorted(lora.items())), losses["loss"]]


STAGES = ("A", "lora", "attention")


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_learned_is_given_back_without_a_step(nodes, model, shelf, steps, said, stage):
    first = run(nodes, model, stage)
    assert steps == list(range(1, STEPS + 1))
    assert [file.name.split(".")[1:] for file in shelf.iterdir()] == [["learned", "safetensors"]]
    steps.clear()
    given.assert_same(run(nodes, model, stage), first)
    assert steps == [] and said[-1] == f"learned before, in {STEPS} steps"
    # The model that comes back draws the same, too.
    if stage != "A":
        latent, text = given.latent(count=2), given.conditioning()
        args = (model, text, latent, stage, STEPS, 1e-4, 3)
        kept, anew = (nodes.finetune(*args, keep=keep, batch_size=2)[0] for keep in (True, False))
        losses = [nodes.sampled_loss(one, text, given.latent(), 1) for one in (kept, anew)]
        assert losses[0] == losses[1] != nodes.sampled_loss(model, text, given.latent(), 1)


def test_what_the_sentence_was_before_stage_a_is_no_other_input(nodes, model, shelf, steps):
    """An edit that is loaded does not say it in its sentence."""
    image = given.latent()
    optimized, _ = nodes.optimize(model, given.conditioning(), image, 1, 1e-2, 0, batch_size=1)
    (entry,) = optimized
    bare = [[entry[0], {k: v for k, v in entry[1].items() if k != "imagic_origin"}]]
    assert bare[0][1].keys() != entry[1].keys()
    steps.clear()
    for text in (optimized, bare):
        nodes.finetune(model, text, image, "lora", 2, 1e-4, 3, batch_size=1, keep=True)
    assert steps == [1, 2]


def test_switched_off_it_trains_and_keeps_nothing(nodes, model, shelf, steps):
    run(nodes, model, "A", keep=False)
    assert not shelf.exists()
    run(nodes, model, "A")
    steps.clear()
    run(nodes, model, "A", keep=False)
    assert len(steps) == STEPS


# ---- broken off -----------------------------------------------------------------------------


def break_off(nodes, monkeypatch, end: str, step: int) -> None:
    """Let the training end so within step ``step``, or right after it when it is cancelled."""
    import comfy.model_management

    reporter, training = nodes.module.nodes.progress.Reporter, nodes.core.checkpoint.Training
    report, make_step, predict = reporter.__call__, training.step, nodes.host.HostDenoiser.predict
    at = [0]

    def on_step(self: Any, progress: Any) -> None:
        at[0] = progress.step
        if end == "cancelled" and at[0] == step:
            comfy.model_management.interrupt_current_processing()
        if end == "raised" and at[0] == step:
            raise _Stop
        report(self, progress)

    def in_forward(self: Any, *args: Any) -> torch.Tensor:
        if at[0] != step - 1:
            return predict(self, *args)
        if end == "forward":
            raise torch.OutOfMemoryError("forward")
        estimate = predict(self, *args)
        if end == "backward" and estimate.requires_grad:
            estimate.register_hook(_fail)
        return estimate

    def in_optimiser(self: Any, loss: float) -> None:
        if end == "optimiser" and at[0] == step - 1:
            with torch.no_grad():  # some of them have moved already
                self.parameters[0].add_(1.0)
            self.is_moving = True
            raise torch.OutOfMemoryError("optimiser")
        make_step(self, loss)

    monkeypatch.setattr(reporter, "__call__", on_step)
    monkeypatch.setattr(nodes.host.HostDenoiser, "predict", in_forward)
    monkeypatch.setattr(training, "step", in_optimiser)


def _fail(_gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("backward")


ENDS = {"cancelled": 3, "raised": 3, "forward": 2, "backward": 2, "optimiser": 2}
"""How it ends in step 3 -> how many steps are whole then."""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_was_broken_off_ends_bit_for_bit_as_what_was_not(
    nodes, model, shelf, steps, said, stage, end, monkeypatch
):
    whole = run(nodes, model, stage, keep=False)
    with monkeypatch.context() as patch:
        break_off(nodes, patch, end, 3)
        if end == "optimiser":  # which leaves nothing whole
            keep_each_step(nodes, patch)
        found = ended(lambda: run(nodes, model, stage, save_memory="off"))
    names = {"cancelled": "InterruptProcessingException", "raised": "_Stop"}
    assert found == names.get(end, "OutOfMemoryError")
    assert [file.name.split(".")[1:] for file in shelf.iterdir()] == [["steps", "safetensors"]]
    steps.clear()
    given.assert_same(run(nodes, model, stage), whole)
    assert steps == list(range(ENDS[end] + 1, STEPS + 1))
    assert said[-1].startswith(f"resumed at step {ENDS[end]} of {STEPS}, now step {STEPS}")
    assert [file.name.split(".")[1:] for file in shelf.iterdir()] == [["learned", "safetensors"]]


def test_weights_that_were_moved_themselves_are_not_taken_for_changes(
    nodes, model, shelf, steps, monkeypatch
):
    """As where the weights come to lie in main memory after the training broke off."""
    whole = run(nodes, model, "attention", keep=False)
    with monkeypatch.context() as patch:
        break_off(nodes, patch, "cancelled", 3)
        assert ended(lambda: run(nodes, model, "attention")) == "InterruptProcessingException"
    inside = importlib.import_module(
        nodes.host.trainable.__module__.replace("trainable", "changes")
    )
    monkeypatch.setattr(inside, "_is_as_used", lambda *_: False)
    steps.clear()
    found = run(nodes, model, "attention")
    assert steps == list(range(1, STEPS + 1))
    assert found[1] == pytest.approx(whole[1], rel=1e-3)


@pytest.mark.parametrize("end", ["forward", "backward", "optimiser"])
def test_out_of_memory_goes_on_in_the_next_cheaper_way(
    nodes, model, shelf, steps, end, monkeypatch
):
    keep_each_step(nodes, monkeypatch)
    whole = run(nodes, model, "lora", keep=False)
    steps.clear()
    real, ways = nodes.host.trainable, []

    def trainable(*args: Any, recompute: bool, **kwargs: Any) -> Any:
        ways.append(recompute)
        if recompute:
            undo.undo()
        return real(*args, recompute=recompute, **kwargs)

    monkeypatch.setattr(nodes.host, "trainable", trainable)
    undo = pytest.MonkeyPatch()
    break_off(nodes, undo, end, 4)
    found = run(nodes, model, "lora")
    assert ways == [False, True] and steps == [1, 2, 3, 4, 5]
    # Recomputed blocks round otherwise.
    assert found[1] == pytest.approx(whole[1], rel=1e-4)
    assert found[1][:3] == whole[1][:3]
    run(nodes, model, "A")  # a second prompt right after it


def test_a_training_in_half_precision_and_its_scale_go_on(nodes, narrow_checkpoint, shelf, steps):
    half = given.load(narrow_checkpoint, dtype=torch.float16)
    whole = run(nodes, half, "attention", keep=False)
    patch = pytest.MonkeyPatch()
    break_off(nodes, patch, "cancelled", 3)
    assert ended(lambda: run(nodes, half, "attention")) == "InterruptProcessingException"
    patch.undo()
    steps.clear()
    given.assert_same(run(nodes, half, "attention"), whole)
    assert steps == [4, 5]


@pytest.mark.parametrize("family", ["x4_upscaler", "flux"])
def test_models_with_noise_of_their_own_and_others_go_on(
    nodes, comfy, shelf, steps, family, tmp_path, monkeypatch
):
    kind, loaded = kinds.load(family, tmp_path)
    text, latent = kinds.conditioning(kind), kinds.latent(kind)

    def tokens(**how: Any) -> Any:
        return nodes.optimize(loaded, text, latent, STEPS, 1e-2, 3, **how)[0][0][0]

    whole = tokens()
    with monkeypatch.context() as patch:
        break_off(nodes, patch, "cancelled", 2)
        assert ended(lambda: tokens(keep=True)) == "InterruptProcessingException"
    steps.clear()
    assert torch.equal(tokens(keep=True), whole)
    assert steps == [3, 4, 5]


# ---- files ----------------------------------------------------------------------------------


def damaged(file: Path, how: str) -> None:
    from safetensors.torch import load_file, save_file

    content = file.read_bytes()
    if how == "cut off":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no safetensors":
        file.write_bytes(os.urandom(1000))
    elif how == "a bit":
        file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif how == "another shape":
        save_file({k: t.flatten()[:1] for k, t in load_file(file).items()}, file, {"about": "{}"})
    elif how == "a folder":
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize(
    "how", ["cut off", "empty", "no safetensors", "a bit", "another shape", "a folder"]
)
@pytest.mark.parametrize("done", [False, True])
def test_a_file_that_is_damaged_is_passed_over(
    nodes, model, shelf, steps, how, done, monkeypatch, caplog
):
    whole = run(nodes, model, "A", keep=False)
    with monkeypatch.context() as patch:
        if not done:
            break_off(nodes, patch, "cancelled", 2)
        assert (ended(lambda: run(nodes, model, "A")) is None) == done
    (file,) = shelf.iterdir()
    damaged(file, how)
    steps.clear()
    with caplog.at_level(logging.WARNING, "comfyui-imagic"):
        given.assert_same(run(nodes, model, "A"), whole)
    assert steps == list(range(1, STEPS + 1))
    assert f"{file.name} is passed over" in caplog.text


@pytest.mark.parametrize("fault", ["full", "not a folder"])
def test_where_nothing_can_be_written_it_trains_with_a_warning(
    nodes, model, shelf, fault, caplog, monkeypatch
):
    keep_each_step(nodes, monkeypatch)
    whole = run(nodes, model, "lora", keep=False)
    with caplog.at_level(logging.WARNING, "comfyui-imagic"):
        if fault == "full":
            with small_files_only(64 * 1024):
                found = run(nodes, model, "lora")
        else:
            shelf.parent.mkdir(parents=True)
            shelf.write_text("a file in its place")
            found = run(nodes, model, "lora")
    given.assert_same(found, whole)
    assert "is not kept" in caplog.text
    # Once in the training, and once at its end.
    assert caplog.text.count("is not kept") == 2
    if fault == "full":
        assert list(shelf.iterdir()) == []


def test_the_oldest_go_where_there_are_too_many_or_too_large(nodes, shelf, monkeypatch):
    kept = nodes.module.nodes.kept
    monkeypatch.setattr(kept, "MAX_FILES", 3)
    monkeypatch.setattr(kept, "MAX_BYTES", 10_000)

    def put(name: str, size: int = 100) -> None:
        kept.Shelf(name).put(kept.Learned({"a": torch.zeros(size, dtype=torch.uint8)}, [1.0]))
        for file in shelf.glob("*.safetensors"):  # as if some time had passed
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))

    def there() -> set[str]:
        return {file.name.split(".")[0] for file in shelf.glob("*.safetensors")}

    for name in "abc":
        put(name)
    assert kept.Shelf("a").result() is not None  # used just now
    put("d")
    assert there() == {"a", "c", "d"}
    put("e", 9_800)
    assert there() == {"e"}
    put("f", 20_000)
    assert there() == {"e"}, "what is too large by itself drives nothing out"
    stale, fresh = shelf / ".x.1.part", shelf / ".y.2.part"
    for part in (stale, fresh):
        part.write_bytes(b"0")
    os.utime(stale, (0, time.time() - 2 * kept.UNFINISHED_WRITE))
    put("g")
    assert fresh.exists() and not stale.exists()


def test_it_lies_where_no_page_can_load_it_and_is_no_pickle(nodes, model, shelf):
    import folder_paths

    run(nodes, model, "A")
    assert Path(folder_paths.get_user_directory(), "__imagic") == shelf.parent
    (file,) = shelf.iterdir()
    assert file.suffix == ".safetensors" and len(file.name.split(".")[0]) == 64


# ---- what tells one training from another ---------------------------------------------------


def name_of(nodes: imagic.Pack, model: Any, text: Any, latent: Any, **how: Any) -> str:
    training = nodes.module.nodes.train
    settings = nodes.core.fit.Settings(STEPS, 1e-2, 3, batch_size=4)
    about = {"training_dtype": "auto", "save_memory": "auto", "what": ("lora", 4)} | how
    settings = replace(settings, **about.pop("settings", {}))
    with torch.inference_mode():
        wires = training.read_wires(model, "target", text, latent)
        found = training.shelf_of(wires, training.Run(settings, keep=True, **about))
    return found.steps.name.split(".")[0]


def test_whatever_changes_the_result_changes_the_name(nodes, model, narrow_checkpoint, tmp_path):
    from families.tiny import build_narrow

    text, latent = given.conditioning(), given.latent()
    masked = {**latent, "noise_mask": torch.ones(1, 64, 64)}
    half_masked = {**latent, "noise_mask": 0.5 * torch.ones(1, 64, 64)}
    guided = [[text[0][0], {**text[0][1], "guidance": 3.5}]]
    pooled = [[text[0][0], {"pooled_output": text[0][1]["pooled_output"] * 1.001}]]
    moved = {"samples": latent["samples"].clone()}
    moved["samples"][0, 3, 7, 7] += 1e-6

    def names(model: Any) -> list[str]:
        model_changes = [
            nodes.host.apply_lora(model, nodes.host.changes_to_lora(
                nodes.host.new_changes(model, method, 4, seed)
            ), strength)
            for method, seed, strength in (("lora", 0, 1.0), ("lora", 1, 1.0), ("lora", 1, 0.5))
        ]  # fmt: skip
        key = next(iter(nodes.host.weight_shapes(model)))
        shape = nodes.host.weight_shapes(model)[key]
        for number, strength in ((0.0, 1.0), (1e-7, 1.0), (1e-7, 0.5)):
            patched = model.clone()
            difference = torch.zeros(shape)
            difference.view(-1)[-1] = number
            patched.add_patches({key: ("diff", (difference,))}, strength)
            model_changes.append(patched)
        for sampling in ("v_prediction", "lcm"):
            (changed,) = nodes.call("ModelSamplingDiscrete", model, sampling, False)
            model_changes.append(changed)
        for b1 in (1.3, 1.4):
            model_changes.append(nodes.call("FreeU_V2", model, b1, 1.4, 0.9, 0.2)[0])
        return [
            name_of(nodes, model, text, latent),
            *(name_of(nodes, one, text, latent) for one in model_changes),
            name_of(nodes, model, given.conditioning(1), latent),
            name_of(nodes, model, guided, latent),
            name_of(nodes, model, pooled, latent),
            name_of(nodes, model, text, given.latent(1)),
            name_of(nodes, model, text, moved),
            name_of(nodes, model, text, masked),
            name_of(nodes, model, text, half_masked),
            *(
                name_of(nodes, model, text, latent, settings={name: value})
                for name, value in {
                    "steps": 6, "learning_rate": 1.1e-2, "seed": 4, "batch_size": 3,
                    "stratified": True, "decay": True, "relative": True,
                }.items()
            ),
            name_of(nodes, model, text, latent, training_dtype="float16"),
            *(
                name_of(nodes, model, text, latent, what=what)
                for what in (("lora", 5), ("full",), ("the text",))
            ),
        ]  # fmt: skip

    first = names(model)
    assert len(set(first)) == len(first)
    # The same again: in another object, and while the host has it loaded with patches.
    again = given.load(narrow_checkpoint)
    assert names(again) == first
    tuned = nodes.host.apply_lora(again, nodes.host.changes_to_lora(
        {k: _moved(c) for k, c in nodes.host.new_changes(again, "full", 4, 0).items()}
    ))  # fmt: skip
    nodes.sampled_loss(tuned, text, latent, 1)
    assert names(again) == first
    assert name_of(nodes, model, text, latent, save_memory="on") == first[0]
    for other in (
        given.load(build_narrow(tmp_path / "other.safetensors", seed=1)),
        given.load(narrow_checkpoint, dtype=torch.float16),
        _changed_by_a_bit(given.load(narrow_checkpoint)),
    ):
        assert not set(names(other)) & set(first)


def test_the_name_is_the_same_wherever_the_pack_lies(nodes, model, monkeypatch):
    """ComfyUI names the modules of a pack by its folder."""
    text, latent = given.conditioning(), given.latent()
    first = name_of(nodes, model, text, latent)
    for kind in (nodes.core.fit.Settings, nodes.core.edit.Sentence, nodes.core.objective.Embedding):
        name = kind.__module__.rpartition(".")[2]
        monkeypatch.setattr(kind, "__module__", f"/elsewhere/custom_nodes/Imagic.x.{name}")
    assert name_of(nodes, model, text, latent) == first


def _moved(change: Any) -> Any:
    with torch.no_grad():
        for leaf in change.parameters():
            leaf.add_(1e-3)
    return change


def _changed_by_a_bit(model: Any) -> Any:
    """Its largest weight has one other number, somewhere in the middle."""
    weight = max(model.model.diffusion_model.parameters(), key=lambda w: w.numel())
    with torch.inference_mode():
        # None of the sample, which takes every so many words.
        middle = weight.data.view(-1)[weight.numel() // 2 + 7 :][:1]
        middle.copy_(torch.nextafter(middle, torch.tensor(9.0)))
    return model


def test_what_cannot_be_told_apart_is_not_kept(nodes, model, shelf, steps, caplog):
    odd = model.clone()
    generator = torch.Generator()
    odd.set_model_unet_function_wrapper(
        lambda function, args: function(args["input"], args["timestep"], **args["c"])
        if generator else None
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "comfyui-imagic"):
        for _ in range(2):
            run(nodes, odd, "A")
    assert steps == [1, 2, 3, 4, 5] * 2 and not shelf.exists()
    assert "is not kept: there is something around 'model'" in caplog.text


# ---- what it costs, and what it says --------------------------------------------------------


def test_the_name_of_a_gigabyte_is_made_in_seconds(nodes, model):
    big = model.clone()
    big.add_patches({})
    big.model_options["transformer_options"]["some"] = [torch.randn(2**25) for _ in range(8)]
    began = time.monotonic()
    name_of(nodes, big, given.conditioning(), given.latent())
    assert time.monotonic() - began < 10


def test_it_is_kept_as_seldom_as_its_cost_asks(nodes, model, shelf, monkeypatch):
    kept = nodes.module.nodes.kept
    monkeypatch.setattr(kept, "SECONDS_BETWEEN", 5.0)
    monkeypatch.setattr(kept, "SHARE_OF_TIME", 0.02)
    clock, writes = [0.0], []
    monkeypatch.setattr(kept.time, "monotonic", lambda: clock[0])

    def write(file: Path, value: Any) -> bool:
        writes.append((len(value.about["losses"]), clock[0]))
        clock[0] += 0.5
        return True

    monkeypatch.setattr(kept, "kept", write)
    training = nodes.core.checkpoint.Training(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1),
        torch.amp.GradScaler("cpu", enabled=False),
        torch.Generator(),
    )
    keeper = kept.FileKeeper(shelf / "x", type("Denoiser", (), {"passes": 0})(), 0)
    keeper.begin(training)
    for _ in range(80):
        clock[0] += 1.0
        training.step(0.0)
        keeper.stepped(training)
    assert [step for step, _ in writes] == [5, 30, 55, 80]
    keeper.broken_off()
    assert len(writes) == 4, "nothing has changed since"


def test_before_it_starts_it_says_how_much_and_then_how_long(nodes, model, shelf, said):
    run(nodes, model, "A", keep=False)
    least = model.model_size() / 2**30
    start = f"5 steps of 2 evaluations, forward and back, in at least {least:.1f} GB; memory: "
    assert said[0].startswith(start) and said[0].endswith(" GB free")
    assert said[-1].startswith("step 5 of 5, memory")
    duration = nodes.module.nodes.progress._duration
    assert [duration(s) for s in (0.2, 99, 100, 3000, 3700)] == [
        "1 s", "99 s", "2 min", "50 min", "1 h 2 min"
    ]  # fmt: skip


def test_what_can_never_fit_is_refused_before_anything_is_loaded(nodes, model, monkeypatch):
    import comfy.model_management

    host, asked = nodes.host, []
    monkeypatch.setattr(host, "trainable", lambda *_, **__: asked.append(1))
    size = model.model_size()
    memory = nodes.module.nodes.memory
    monkeypatch.setattr(memory.psutil, "swap_memory", lambda: type("Swap", (), {"total": 0}))
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: 2 * size)
    with pytest.raises(RuntimeError, match=r"^Imagic Fine-tune Model: the weights take .* in all"):
        run(nodes, model, "full", keep=False)
    assert asked == []
    with pytest.raises(TypeError):  # of the stand-in above
        run(nodes, model, "lora", keep=False)
    assert asked == [1]
