"""Choosing and describing a device."""

import platform
from types import SimpleNamespace

import pytest
import torch

from moebius.errors import ConfigError
from moebius.hardware.device import choose_device, crowding, describe, total_memory, wait
from moebius.hardware.processor import Usage

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


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, name, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    message = f"train.device='{name}': this machine has {gpus} CUDA device{'s' * (gpus != 1)};"
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_a_cpu_in_words(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe(CPU) == f"CPU {platform.machine()}, {words}"


@pytest.mark.parametrize(
    ("device", "others", "is_crowded"),
    [("cpu", 0.05, False), ("cpu", 0.5, True), ("cuda", 0.5, False), ("cuda", 1.0, True)],
)
def test_a_run_is_crowded_if_it_has_to_share_the_cores_it_needs(
    monkeypatch, device, others, is_crowded
):
    """A run on the CPU needs both of the cores here, and one on a GPU needs one of them."""
    watch = SimpleNamespace(usage=lambda: Usage(own=1.0, others=others, cores=2))
    monkeypatch.setattr("moebius.hardware.device.SINCE_THE_START", watch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said = f"others are using the processor ({others:.1f} of 2 cores)" if is_crowded else ""
    assert crowding(torch.device(device)) == said


@pytest.mark.gpu
def test_a_gpu_says_its_name_and_its_memory():
    device = torch.device("cuda")
    assert describe(device) == torch.cuda.get_device_name(device)
    torch.ones(64 << 20, dtype=torch.uint8, device=device)
    wait(device)
    assert total_memory(device) > 64 << 20
