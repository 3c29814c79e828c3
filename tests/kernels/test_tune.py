"""The choice of a tile: the fastest is measured once, and there is a tile without measuring, too.

No GPU is needed, because the times are made up.
"""

import json

import pytest
import torch

pytest.importorskip("triton", reason="triton is for Linux")

from triton.runtime.errors import OutOfResources

from moebius.kernels import tune
from moebius.kernels.tiles import Tile

SLOW, FAST, LARGE = Tile(64, 64, 32, 4, 2), Tile(128, 64, 32, 4, 2), Tile(256, 256, 64, 8, 4)
KEY = ("down", torch.device("cuda"), 1024, 5, 24, 40)


@pytest.fixture(autouse=True)
def a_device(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MOEBIUS_TUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def measured(monkeypatch) -> list[Tile]:
    """Replace the timing with fixed times, and return the list of tiles that were timed so far."""
    tiles: list[Tile] = []
    milliseconds = {SLOW: 2.0, FAST: 1.0, LARGE: float("inf")}

    def time(run: object, tile: Tile) -> float:
        tiles.append(tile)
        return milliseconds[tile]

    monkeypatch.setattr(tune, "_time", time)
    return tiles


def choose(*candidates: Tile, key: tuple = KEY) -> Tile:
    return tune._choose(list(candidates), key, lambda tile: None)


def test_the_fastest_is_measured_once_and_kept(measured):
    assert choose(SLOW, LARGE, FAST) == FAST
    assert measured == [SLOW, LARGE, FAST]
    assert choose(SLOW, LARGE, FAST) == FAST
    assert len(measured) == 3
    (name,) = json.loads(tune.cache_file().read_text())
    assert "a GPU" in name and "triton" in name
    assert choose(SLOW, FAST, key=(*KEY[:2], 2048, *KEY[3:])) == FAST
    assert len(measured) == 5  # a different number of rows is measured again


def test_if_the_kept_tile_is_no_candidate_any_more_it_is_measured_again(measured):
    choose(SLOW, FAST)
    assert choose(SLOW, LARGE) == SLOW
    assert measured == [SLOW, FAST, SLOW, LARGE]


@pytest.mark.parametrize("text", ["", "[]", '{"unfinished', "\x00"])
def test_a_damaged_cache_file_is_ignored(measured, text):
    tune.cache_file().parent.mkdir()
    tune.cache_file().write_text(text)
    assert choose(SLOW, FAST) == FAST
    assert json.loads(tune.cache_file().read_text())


def test_a_cache_that_cannot_be_written_is_no_error(measured, tmp_path):
    (tmp_path / "moebius").write_text("a file where the folder would be")
    assert choose(SLOW, FAST) == FAST


def test_moebius_tune_off_takes_the_first_candidate(measured, monkeypatch):
    monkeypatch.setenv("MOEBIUS_TUNE", "off")
    assert choose(SLOW, FAST) == SLOW
    assert not measured and not tune.cache_file().exists()


def test_a_tile_that_does_not_fit_takes_infinite_time():
    def run(tile: Tile) -> None:
        raise OutOfResources(262176, 232448, "shared memory")

    assert tune._time(run, LARGE) == float("inf")
