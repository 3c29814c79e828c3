"""The choice of a tile: the fastest, once; without measuring, or with a spoiled file, still one that fits."""

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
    """The tiles that were timed, in order."""
    tiles: list[Tile] = []
    monkeypatch.setattr(
        tune, "_time", lambda run, tile: tiles.append(tile) or {SLOW: 2.0, FAST: 1.0, LARGE: float("inf")}[tile]
    )
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
    assert len(measured) == 5  # another shape


def test_a_kept_tile_that_is_no_candidate_any_more_is_measured_again(measured):
    choose(SLOW, FAST)
    assert choose(SLOW, LARGE) == SLOW
    assert measured == [SLOW, FAST, SLOW, LARGE]


@pytest.mark.parametrize("text", ["", "[]", '{"unfinished', "\x00"])
def test_a_spoiled_file_is_no_file(measured, text):
    tune.cache_file().parent.mkdir()
    tune.cache_file().write_text(text)
    assert choose(SLOW, FAST) == FAST
    assert json.loads(tune.cache_file().read_text())


def test_a_place_that_cannot_be_written_to(measured, tmp_path):
    (tmp_path / "moebius").write_text("a file where the folder would be")
    assert choose(SLOW, FAST) == FAST


def test_off_takes_the_first(measured, monkeypatch):
    monkeypatch.setenv("MOEBIUS_TUNE", "off")
    assert choose(SLOW, FAST) == SLOW
    assert not measured and not tune.cache_file().exists()


def test_a_tile_that_does_not_fit_takes_forever():
    def run(tile: Tile) -> None:
        raise OutOfResources(262176, 232448, "shared memory")

    assert tune._time(run, LARGE) == float("inf")
