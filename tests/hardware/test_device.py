"""Choosing and describing a device."""

import platform

import pytest
import torch

from moebius.errors import ConfigError
from moebius.hardware.device import choose_device, describe, peak_memory, total_memory, wait

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_by_name(monkeypatch, name, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, name, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    message = f"train.device='{name}': this machine has {gpus} CUDA devices"
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


def test_a_cpu_in_words():
    expected = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    assert describe(CPU) == expected


def test_the_memory_of_a_process_only_grows():
    before = peak_memory(CPU)
    block = torch.ones(64 << 20, dtype=torch.uint8)
    wait(CPU)
    assert block.sum() and peak_memory(CPU) >= before > 10e6


@pytest.mark.gpu
def test_a_gpu_says_its_name_and_its_memory():
    device = torch.device("cuda")
    assert describe(device) == torch.cuda.get_device_name(device)
    torch.ones(64 << 20, dtype=torch.uint8, device=device)
    wait(device)
    assert 64 << 20 <= peak_memory(device) <= total_memory(device)
