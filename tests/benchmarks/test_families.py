"""The README's tables of models: made by the tools, with a row for each that they know."""

from __future__ import annotations

from families.options import OPTIONS

from benchmarks import command, families, model_options

ROW = {
    "start": 2.0, "after A": 1.75, "after B": 1.5, "returned MODEL": 1.5,
    "text learned": "tokens, not pooled", "recomputed": 0.0, "one at a time": 1e-6,
}  # fmt: skip


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readme_has_every_model_once_and_in_order():
    head, _, *rows = map(_cells, command.in_readme("families")[1].splitlines())
    assert head == list(families.HEAD)
    assert [row[0] for row in rows] == [f.title for f in families.FAMILIES.values()]
    assert not [row[0] for row in rows if "not run" in row]


def test_the_readme_has_every_option_once_and_in_order():
    head, _, *rows = map(_cells, command.in_readme("model_options")[1].splitlines())
    assert head == list(model_options.HEAD)
    assert [row[0] for row in rows] == list(OPTIONS)


def test_a_row_says_what_was_found():
    results = {
        "sd15/lora/float32/0.3.75": ROW,
        "sd15/lora/float32/0.33.0": {**ROW, "returned MODEL": 1.5025},
        "sd15/full/float32/0.33.0": {**ROW, "after B": 1.8, "returned MODEL": 1.8},
        "sd15/lora/bfloat16/0.33.0": ROW,
        "sd15/lora/nvfp4/0.33.0": {**ROW, "returned MODEL": 1.45},
        "sd15/lora/mxfp8/0.3.75": {"not there": "not in this version"},
        "sd15/lora/mxfp8/0.33.0": {"failed": "RuntimeError: a | b"},
        "sdxl/lora/float32/0.33.0": {"refused": "it cannot"},
        "sdxl/full/float32/0.33.0": {"refused": "it cannot"},
    }
    _, _, *rows = map(_cells, families.table(results).splitlines())
    found = {row[0]: row[1:] for row in rows}
    assert found["Stable Diffusion 1.x"] == [
        "noise", "tokens, not pooled", "0.3.75, 0.33.0", "2.000", "1.750", "1.500",
        "did not learn", "1e-02", "bfloat16", "nvfp4 (2e-01), mxfp8: failed: RuntimeError: a / b",
    ]  # fmt: skip
    assert found["Stable Diffusion XL"][2:4] == ["0.33.0", "refused: it cannot"]
    assert found["Flux"][2] == "not run"
