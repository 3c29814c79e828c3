"""The memory of a run: what its process owns, and not what it maps."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius.hardware import memory
from moebius.hardware.device import total_memory
from moebius.hardware.memory import PeakMemory

CPU = torch.device("cpu")
MB = 1 << 20
on_linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells what is mapped"
)


def mapped_and_owned(path: Path, moments: list[str]) -> list[float]:
    """Return the peaks in MB, before and after each of these moments."""
    peak = PeakMemory(CPU)
    peaks = [peak.bytes() / MB]
    kept = []
    for moment in moments:
        if moment == "map":
            kept.append(np.memmap(path, np.uint8, "r"))
            kept[-1].max()  # reads every page
        elif moment == "own":
            kept.append(np.ones(96 * MB, np.uint8))
        else:  # memory that is freed again before anybody looks
            np.ones(160 * MB, np.uint8)
        peaks.append(peak.bytes() / MB)
    return peaks


@on_linux
@pytest.mark.parametrize(
    ("moments", "rises"),
    [
        pytest.param(["map", "own"], [0, 96], marks=pytest.mark.heavy),
        pytest.param(["own", "map"], [96, 0], marks=pytest.mark.heavy),
        (["map", "spike", "map"], [0, 160, 0]),
        pytest.param(["spike", "own", "map"], [160, 0, 0], marks=pytest.mark.heavy),
    ],
)
def test_mapped_files_are_not_counted_and_freed_memory_is(tmp_path: Path, moments, rises):
    path = tmp_path / "shard"
    path.write_bytes(bytes(256 * MB))
    # A process of its own has no peak from the tests before.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peaks = pool.apply(mapped_and_owned, (path, moments))
    assert np.diff(peaks) == pytest.approx(rises, abs=8)


def test_the_memory_of_a_process_only_grows(monkeypatch, tmp_path: Path):
    for status in (memory._STATUS, tmp_path / "none"):
        monkeypatch.setattr(memory, "_STATUS", status)
        peak = PeakMemory(CPU)
        before = peak.bytes()
        block = torch.ones(64 * MB, dtype=torch.uint8)
        during = peak.bytes()
        del block
        assert peak.bytes() >= during >= before > 10e6


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_what_was_allocated():
    device = torch.device("cuda")
    torch.ones(64 * MB, dtype=torch.uint8, device=device)
    assert 64 * MB <= PeakMemory(device).bytes() <= total_memory(device)
