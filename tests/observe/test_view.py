"""The live view as text, at many sizes and of many shapes of models."""

import math

import pytest
from rich.segment import Segment

from moebius.observe.so_far import SoFar
from moebius.observe.view import HEAD, View, clock, layout
from tests.observe.made_up_view import SIZES, made_up, step_of


def text_of(so_far: SoFar, width: int, height: int) -> list[str]:
    """Return the rows of the view, after checking that they fill the terminal and no more."""
    rows = View(so_far).rows(width, height)
    assert len(rows) == height
    assert all(Segment.get_line_length(row) == width for row in rows)
    return ["".join(segment.text for segment in row) for row in rows]


@pytest.mark.parametrize("kind", ["healthy", "collapsed", "diverged"])
@pytest.mark.parametrize("num_experts", [4, 64, 512])
@pytest.mark.parametrize("num_layers", [2, 24, 96])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_shape(size, num_layers, num_experts, kind):
    shown = text_of(made_up(num_layers, num_experts, kind), *size)
    text = "\n".join(shown)
    for part in ("my-run  training: ", "step 1,000/5,000 ━", "20.0%  1:01:01  25:00:00 left"):
        assert part in text
    for part in ("loss ", "held-out ", "162.3k tok/s", "MFU 41.2%", "31.4 GB", "┤", "latest"):
        assert part in text
    assert "step 1000: checkpoint" in text
    words = {"healthy": "healthy so far", "diverged": "the loss rose from"}
    assert words.get(kind, "experts dead") in shown[0]
    heads = [row for row in shown if row.startswith("layer ")]
    assert len(heads) == 1 and heads[0].rstrip().endswith("CV  dead")
    at = shown.index(heads[0]) + 1
    rows = [row for row in shown[at:] if row[:3].strip()[:1].isdigit()]
    columns = heads[0].count("layer ")
    assert len(rows) * columns >= min(num_layers, len(rows) * columns)
    last = max(int(part) for part in " ".join(rows).replace("▸", " ").replace("-", " ").split()
               if part.isdigit() and int(part) < num_layers)  # fmt: skip
    assert last == num_layers - 1  # no layer is left out
    assert ("x" in "".join(row[8:40] for row in rows)) == (kind == "collapsed")


@pytest.mark.parametrize("size", [(1, 1), (5, 2), (20, 5), (30, 9), (300, 8), (40, 100), (80, 0)])
def test_sizes_that_hardly_make_sense(size):
    for so_far in (made_up(24, 64), made_up(0, 0), SoFar("x")):
        text_of(so_far, *size)


def test_what_is_shown_before_the_first_step_is_logged():
    shown = text_of(SoFar("new", 100), 80, 24)
    assert shown[0].startswith("new  training: no step logged yet")
    assert shown[1].startswith("step 0/100 ─") and "waiting" in shown[2]
    assert any("no events so far" in row for row in shown)


def test_layers_that_do_not_fit_are_folded_and_the_worst_is_shown():
    so_far = SoFar("run", 10)
    counts = [[1000] * 8 for _ in range(90)]
    counts[41] = [8000, *[0] * 7]
    so_far.add(step_of(10, 3.0, counts))
    (row,) = [row for row in text_of(so_far, 80, 24) if "▸41 " in row]
    assert row.rstrip().endswith("2.65     7") and "█" in row and "x" in row


def test_layers_that_fit_in_no_column_stand_in_several():
    shown = text_of(made_up(96, 16), 200, 50)
    (head,) = [row for row in shown if row.startswith("layer ")]
    assert head.count("CV  dead") == 3 and not any("▸" in row for row in shown)


def test_a_dense_model_has_a_taller_curve_and_no_layers():
    shown = text_of(made_up(0, 0), 80, 24)
    assert not any("dead" in row for row in shown)
    assert sum("│" in row or "┤" in row for row in shown) == 11


def test_losses_that_are_not_finite():
    so_far = made_up(2, 4)
    so_far.add(step_of(1010, math.nan, [[100] * 4] * 2))
    shown = text_of(so_far, 80, 24)
    assert "the loss is not finite" in shown[0] and "loss nan" in shown[2]
    only = SoFar("run", 10)
    only.add(step_of(1, math.inf, [[100] * 4], math.nan))
    text_of(only, 80, 24)


def test_tokens_that_are_lost_are_shown():
    so_far = SoFar("run", 10)
    metrics = step_of(10, 3.0, [[100] * 4])
    object.__setattr__(metrics.layers[0], "dropped_share", 0.25)
    so_far.add(metrics)
    assert "dropped 25%" in text_of(so_far, 80, 24)[2]


def test_control_characters_and_long_texts_stay_in_their_row():
    so_far = made_up(2, 4)
    so_far.name = "run\x1b[2J" + "long" * 40
    so_far.happen("step 3: \x1b]0;title\x07\nsecond line " + "漢" * 100, "alarm")
    shown = text_of(so_far, 80, 24)
    assert not any(ord(character) < 32 for row in shown for character in row)
    assert "run\\x1b[2J" in shown[0] and "\\x1b]0;title" in "".join(shown)


def test_the_rest_is_drawn_again_only_as_often_as_it_may_cost():
    so_far = made_up(2, 4)
    view = View(so_far, share=1e-9)
    first = view.rows(80, 24)
    so_far.add(step_of(1010, 2.0, [[100] * 4] * 2))
    so_far.step = 1234
    later = view.rows(80, 24)
    assert "1,234" in "".join(segment.text for segment in later[1])
    assert all(a is b for a, b in zip(first[2:], later[2:], strict=True))
    assert "loss 2.000" in "".join(segment.text for segment in view.rows(81, 24)[2])


@pytest.mark.parametrize("num_layers", [0, 1, 4, 30, 100])
@pytest.mark.parametrize("height", [1, 5, 8, 12, 15, 24, 40, 100])
def test_the_rows_are_divided_completely(height, num_layers):
    parts = layout(height, num_layers)
    assert min(parts) >= 0 and sum(parts) == max(0, height - HEAD)
    assert parts.layers in (0, *range(2, num_layers + 2))


def test_times():
    assert [clock(n) for n in (0, 59.6, 3661, 400_000)] == [
        "0:00:00", "0:01:00", "1:01:01", "4 d 15 h"]  # fmt: skip
