"""TensorBoard shows each step once, under tags in order, with pictures and texts."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as TextAccumulator,
)
from tensorboard.util.tensor_util import make_ndarray

from moebius.errors import StorageError
from moebius.observe.heat import heat_png
from moebius.observe.sink import Sample
from moebius.observe.tensorboard import CHARTS, FOLDER, SHARES, TensorBoard
from tests.observe.broken import small_files
from tests.observe.made_up import Happening, dense_metrics, metrics_of


def write(run: Path, steps: range, resume_step: int = 0, **changes: Any) -> None:
    """Write steps with a falling loss, as a run does that continues from a checkpoint."""
    board = TensorBoard()
    board.open(run, resume_step)
    for step in steps:
        loss = {"loss": 2.5 / step} | changes
        board.write(metrics_of(step=step, **loss), wall_time=1000.0 + step)
    board.close()


def read(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag, as TensorBoard shows them."""
    accumulator = EventAccumulator(str(run / FOLDER), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags: list[str] = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tags_come_in_order(tmp_path: Path):
    write(tmp_path, range(3, 4))
    groups = list(dict.fromkeys(tag.split("/")[0] for tag in sorted(read(tmp_path))))
    assert groups[:4] == ["1_loss", "2_speed", "3_balance", "4_optimizer"]
    assert groups[4:] == sorted(groups[4:])
    assert all(name.startswith("layer_") for name in groups[4:])


def test_what_is_written_is_read_back(tmp_path: Path):
    write(tmp_path, range(1, 4), mean_gate=[None, 0.25, 0.5], tokens=1_000)
    values = read(tmp_path)
    assert values["1_loss/loss"] == [(step, pytest.approx(2.5 / step)) for step in (1, 2, 3)]
    assert values["layer_mean_gate/02"] == [(step, 0.5) for step in (1, 2, 3)]
    assert "layer_mean_gate/01" not in values  # the layer in the middle is dense
    assert values["2_speed/tokens"][-1] == (3, 1000.0)


def texts(run: Path) -> dict[str, list[tuple[int, str]]]:
    """Return the texts by tag, with their steps, as TensorBoard shows them."""
    accumulator = TextAccumulator(str(run / FOLDER), tensor_size_guidance={"text": 0})
    accumulator.Reload()
    return {
        tag: [
            (event.step, cast(Any, make_ndarray(event.tensor_proto)).item().decode())
            for event in accumulator.Tensors(tag)
        ]
        for tag in accumulator.PluginTagToContent("text")
    }


def loaded(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / FOLDER), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def test_configuration_events_and_samples_are_texts(tmp_path: Path):
    (tmp_path / "config.toml").write_text('[model]\ndim = 32\n# <b>"x"</b>\n')
    board = TensorBoard()
    board.open(tmp_path, 0)
    board.event(Happening(4))
    board.sample(Sample(5, "def ", "def f():\n    return `1`"))
    board.close()
    assert texts(tmp_path) == {
        "config": [(0, '    [model]\n    dim = 32\n    # <b>"x"</b>\n')],
        "events/happening": [(4, "    happening 4\n")],
        "samples": [(5, "    def f():\n        return `1`\n")],
    }


def test_texts_are_shown_as_they_are(tmp_path: Path):
    """TensorBoard's own function makes a block of code of them, without any markup."""
    from tensorboard.plugin_util import markdown_to_safe_html

    board = TensorBoard()
    board.open(tmp_path, 0)
    board.sample(Sample(1, "", "# **a**\n\n<script>x</script> & [b](c)\n"))
    board.close()
    html = markdown_to_safe_html(texts(tmp_path)["samples"][0][1])
    assert "&lt;script&gt;x&lt;/script&gt; &amp; [b](c)" in html and "# **a**" in html
    assert "<strong>" not in html and "<script>" not in html


def test_shares_of_experts_are_a_picture(tmp_path: Path):
    write(tmp_path, range(1, 301))
    pictures = loaded(tmp_path).Images(SHARES)
    steps = [picture.step for picture in pictures]
    assert steps[:50] == list(range(1, 51)) and 50 < len(steps) < 150
    gaps = [later - step for step, later in pairwise(steps)]
    assert all(gap <= max(1, 0.02 * step + 2) for step, gap in zip(steps, gaps, strict=False))
    png, width, height = heat_png(metrics_of())
    assert (pictures[-1].encoded_image_string, pictures[-1].width) == (png, width)
    assert pictures[-1].height == height


def test_a_dense_model_has_neither_pictures_nor_balance(tmp_path: Path):
    board = TensorBoard()
    board.open(tmp_path, 0)
    board.write(dense_metrics())
    board.close()
    tags = loaded(tmp_path).Tags()
    assert tags["images"] == [] and not [tag for tag in tags["scalars"] if "balance" in tag]


def test_charts_of_several_tags_name_tags_that_exist(tmp_path: Path):
    write(tmp_path, range(1, 2), val_loss=1.0, val_bpb=1.0)
    written = read(tmp_path)
    patterns = [tag for charts in CHARTS.values() for tags in charts.values() for tag in tags]
    assert all(any(re.fullmatch(pattern, tag) for tag in written) for pattern in patterns)
    layouts = loaded(tmp_path).PluginTagToContent("custom_scalars")
    assert list(layouts) == ["custom_scalars__config__"]


def test_figures_of_offsets_and_sources_have_tags(tmp_path: Path):
    source = {"share": 0.5, "loss": 2.0, "bpb": None, "tokens": 10}
    offsets = {"mtp_loss_2": 1.0, "mtp_loss_3": 3.0, "mtp_loss_4": None}
    write(tmp_path, range(1, 2), mtp_loss=2.0, **offsets, val_by_source={"a/b.jsonl": source})
    values = read(tmp_path)
    assert values["1_loss/mtp_loss_3"] == [(1, 3.0)] and "1_loss/mtp_loss_4" not in values
    assert values["5_sources/a/b.jsonl/loss"] == [(1, 2.0)]
    assert "5_sources/a/b.jsonl/bpb" not in values


def test_the_wall_time_can_be_set(tmp_path: Path):
    write(tmp_path, range(5, 6))
    accumulator = EventAccumulator(str(tmp_path / FOLDER))
    accumulator.Reload()
    assert [event.wall_time for event in accumulator.Scalars("1_loss/loss")] == [1005.0]


def test_resuming_shows_every_step_once(tmp_path: Path):
    write(tmp_path, range(1, 10), grad_norm=1.0)
    write(tmp_path, range(7, 12), resume_step=6, grad_norm=2.0)
    values = read(tmp_path)
    steps = range(1, 12)
    norms = [(step, 1.0 if step <= 6 else 2.0) for step in steps]
    assert values["4_optimizer/grad_norm"] == norms
    assert [step for step, _ in values["1_loss/loss"]] == list(steps)


def test_resuming_takes_away_what_is_not_written_again(tmp_path: Path):
    write(tmp_path, range(1, 10))
    write(tmp_path, range(0), resume_step=4)
    assert [step for step, _ in read(tmp_path)["1_loss/loss"]] == [1, 2, 3, 4]


def test_starting_over_shows_one_history(tmp_path: Path):
    """A run that was killed before its first checkpoint starts again at step 0."""
    write(tmp_path, range(1, 8), grad_norm=1.0)
    write(tmp_path, range(1, 4), grad_norm=2.0)
    assert read(tmp_path)["4_optimizer/grad_norm"] == [(step, 2.0) for step in (1, 2, 3)]


def test_a_roll_back_leaves_one_history(tmp_path: Path):
    board = TensorBoard()
    board.open(tmp_path, 0)
    for step in range(1, 10):
        board.write(metrics_of(step=step, loss=1.0))
    board.rewind(4)
    for step in range(5, 8):
        board.write(metrics_of(step=step, loss=2.0))
    board.close()
    losses = read(tmp_path)["1_loss/loss"]
    assert losses == [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 8)]


def test_a_figure_that_is_not_finite_is_written(tmp_path: Path):
    write(tmp_path, range(1, 2), loss=float("inf"))
    assert read(tmp_path)["1_loss/loss"] == [(1, float("inf"))]


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/tb: Not a directory") as refusal:
        TensorBoard().open(tmp_path / "file", 0)
    assert refusal.value.exit_code == 6


def size_of(run: Path) -> int:
    return sum(file.stat().st_size for file in (run / FOLDER).iterdir())


def test_a_full_disk_is_named_at_once_and_the_file_can_be_closed(tmp_path: Path):
    board = TensorBoard()
    board.open(tmp_path, 0)
    with small_files(size_of(tmp_path) + 100), pytest.raises(StorageError) as refusal:
        try:
            board.write(metrics_of(step=1))
        finally:
            board.close()
    assert str(refusal.value) == f"{tmp_path / FOLDER}: File too large"
    assert "1_loss/loss" not in read(tmp_path)


def test_a_folder_that_is_renamed_keeps_what_is_written(tmp_path: Path):
    """TensorBoard's own writer opens its file by name again and again, in a thread."""
    run = tmp_path / "run"
    board = TensorBoard()
    board.open(run, 0)
    board.write(metrics_of(step=1))
    run.rename(tmp_path / "renamed")
    board.write(metrics_of(step=2))
    board.close()
    assert not run.exists()
    assert [step for step, _ in read(tmp_path / "renamed")["1_loss/loss"]] == [1, 2]


def test_a_roll_back_takes_away_texts_and_pictures(tmp_path: Path):
    board = TensorBoard()
    board.open(tmp_path, 0)
    for step in (1, 2, 3):
        board.write(metrics_of(step=step))
        board.sample(Sample(step, "", f"first {step}"))
    board.rewind(1)
    board.write(metrics_of(step=2))
    board.sample(Sample(2, "", "second 2"))
    board.close()
    assert [text.strip() for _, text in texts(tmp_path)["samples"]] == ["first 1", "second 2"]
    assert [picture.step for picture in loaded(tmp_path).Images(SHARES)] == [1, 2]
