"""The transfer benchmark's reading of what it measured."""

import pytest

from benchmarks import transfer

RATES = [0.25, 0.5, 1.0, 2.0, 4.0]


def test_best_rate_lies_at_the_vertex_over_the_logarithm():
    # a parabola whose vertex is at 2^0.25
    values = [-((n - 2 - 0.25) ** 2) for n in range(5)]
    assert transfer.vertex(RATES, values) == pytest.approx(2**0.25)


@pytest.mark.parametrize("values,expected", [([1, 2, 3, 4, 5], 4.0), ([5, 4, 3, 2, 1], 0.25)])
def test_best_rate_is_never_outside_of_what_was_tried(values, expected):
    assert transfer.vertex(RATES, values) == expected


def test_a_row_is_the_mean_over_the_edits_that_have_all_rates():
    way = str(transfer.WAYS[1])

    def cell(edit, rate, psnr):
        same = {"reconstruction": 30.0, "kept": True, "left": 0.5}
        return {"network": "once", "way": way, "edit": edit, "rate": rate, "psnr": psnr, **same}

    measured = [cell(e, r, p) for e, p in (("a", 10.0), ("b", 20.0)) for r in RATES]
    (row,) = transfer.summary(measured)
    assert (row["network"], row["way"], row["psnr"]) == ("once", way, [15.0] * 5)
    assert transfer.summary([c for c in measured if c["rate"] != 1.0]) == []
    (part,) = transfer.summary([c for c in measured if (c["edit"], c["rate"]) != ("b", 1.0)])
    assert part["psnr"] == [10.0] * 5
    lines = transfer.for_readme([row]).splitlines()
    assert lines[-1] == (
        f"| once | {way} | 0.25 | 15.0, 15.0, 15.0, 15.0, 15.0 | 30.0, 30.0, 30.0, 30.0, 30.0 |"
    )
