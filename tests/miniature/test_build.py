"""The asset, its layout, and the checkpoint that is built from it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from families import tiny
from safetensors import safe_open

from miniature import asset, build, captions, layout, reader, world

SMALL = layout.Shape(fine=20, coarse=40, time=16, feed=24, text=captions.DIMENSIONS)


def living(shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((*(len(i) for i in index), *full[len(index) :])).astype("float32")
        for full, index, name in layout.slots(shape).values()
        if name
    }


@pytest.mark.parametrize("shape", [SMALL, layout.Shape(20, 40, 16, 24, 128, 2, True)])
def test_layout_keeps_every_living_weight_and_nothing_else(shape):
    own = living(shape)
    full = layout.sd_tensors(shape, own)
    back = layout.own_tensors(shape, full)
    assert back.keys() == own.keys()
    assert all((back[name] == own[name]).all() for name in own)
    passing = 0 if shape.last else layout.FULL
    assert sum(np.count_nonzero(t) for t in full.values()) == passing + sum(
        np.count_nonzero(t) for t in own.values()
    )


def test_packing_is_half_precision_or_eight_bits(monkeypatch):
    own = living(SMALL)
    halves = asset.unpack(asset.pack(own))
    assert max(np.abs(halves[n] - own[n]).max() for n in own) < 3e-3
    monkeypatch.setattr(asset, "HALF_PRECISION_LIMIT", 0)
    packed = asset.pack(own)
    bytes_ = asset.unpack(packed)
    assert packed["enter.weight"].dtype == np.int8 and bytes_.keys() == own.keys()
    for name, t in own.items():
        peak = np.abs(t).reshape(len(t), -1).max(1).reshape(-1, *[1] * (t.ndim - 1))
        assert (np.abs(bytes_[name] - t) <= peak / 127 * 0.51 + 1e-3).all(), name


@pytest.fixture
def small_asset(tmp_path):
    folder = tmp_path / "asset"
    asset.write(SMALL, living(SMALL), {}, 1.0, folder)
    build.seal(folder)
    return folder


def test_the_same_asset_builds_to_the_same_bytes(small_asset, tmp_path):
    first = build.build(tmp_path / "a.safetensors", small_asset)
    second = build.build(tmp_path / "b.safetensors", small_asset)
    assert asset.digest(first) == asset.digest(second)


def test_a_changed_weight_is_noticed_and_leaves_nothing(small_asset, tmp_path):
    wanted = json.loads((small_asset / "asset.json").read_text())
    asset.write(SMALL, living(SMALL, seed=1), {}, 1.0, small_asset)
    (small_asset / "asset.json").write_text(json.dumps(wanted))
    out = tmp_path / "out" / "a.safetensors"
    with pytest.raises(ValueError, match=wanted["sha256"]):
        build.build(out, small_asset)
    assert not list(out.parent.iterdir())


def test_a_file_of_the_right_hash_is_kept_and_another_is_replaced(small_asset, tmp_path):
    out = build.build(tmp_path / "a.safetensors", small_asset)
    before = out.stat().st_mtime_ns
    assert build.build(out, small_asset).stat().st_mtime_ns == before
    out.write_bytes(b"something else")
    build.build(out, small_asset)
    assert out.stat().st_size > 1_000_000


def test_parts_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(asset, "PART_BYTES", 200_000)
    folder = tmp_path / "asset"
    asset.write(SMALL, living(SMALL), {}, 1.0, folder)
    assert len(list(folder.glob("part_*"))) > 2
    _, unet, _ = asset.read(folder)
    assert unet.keys() == living(SMALL).keys()


def test_the_tiny_relative_has_every_key_of_the_miniature_and_no_dead_weight(tmp_path):
    path = tiny.build_tiny(tmp_path / "tiny.safetensors")
    with safe_open(path, "np") as file:
        names = set(file.keys())
        unet = [n for n in names if n.startswith("model.diffusion_model.")]
        assert len(unet) == 206
        dead = [n for n in unet if not file.get_tensor(n).any()]
        first = file.get_tensor("model.diffusion_model.input_blocks.0.0.weight")
    assert not dead
    wanted = build.checkpoint(SMALL, living(SMALL), {}, 1.0)
    assert names == set(wanted)
    again = tiny.build_tiny(tmp_path / "again.safetensors", seed=0)
    assert asset.digest(again) == asset.digest(path)
    with safe_open(tiny.build_tiny(again, seed=1), "np") as file:
        assert (file.get_tensor("model.diffusion_model.input_blocks.0.0.weight") != first).any()


def test_the_shipped_asset_is_small_and_builds_to_its_hash(tmp_path):
    sizes = [p.stat().st_size for p in asset.FOLDER.iterdir()]
    assert sum(sizes) <= 40_000_000 and max(sizes) <= 15_000_000
    built = build.build(tmp_path / "miniature.safetensors")
    about = json.loads((asset.FOLDER / "asset.json").read_text())
    assert asset.digest(built) == about["sha256"]


def test_the_shipped_asset_survives_a_copy_without_torch(tmp_path):
    # build.py must not need torch: its imports are checked in a Python of their own

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import miniature.build; "
        "assert 'torch' not in sys.modules"
    )
    folder = tmp_path / "tests" / "miniature"
    shutil.copytree(asset.FOLDER.parent, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    subprocess.run([sys.executable, "-c", code, str(folder.parent)], check=True)


def test_the_reader_reads_held_out_renders():
    model, count = reader.load(), 240
    rng = np.random.default_rng(5)
    truths = [(world.identity("heldout", i), world.attributes(rng)) for i in range(count)]
    found = reader.read(model, np.stack([world.render(*t) for t in truths]))
    for name in ("pose", "place", "accessory"):
        right = np.mean(
            [
                getattr(f, name) == getattr(what, name)
                for f, (_, what) in zip(found, truths, strict=True)
            ]
        )
        assert right >= 0.99, (name, right)
    facing = np.mean([f.facing == who.facing for f, (who, _) in zip(found, truths, strict=True)])
    assert facing >= 0.99


def test_the_reader_does_not_take_a_spoilt_dog_for_a_pose():
    rng = np.random.default_rng(6)
    truths = [(world.identity("heldout", i), world.attributes(rng)) for i in range(100)]
    spoilt = np.stack([reader.spoil(world.render(*t), *t, rng) for t in truths])
    called = [f.pose for f in reader.read(reader.load(), spoilt)]
    assert np.mean([pose == reader.NO_DOG for pose in called]) >= 0.9
