"""The file in which a device's highest rates are kept."""

import json
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebius.hardware import ceilings as module
from moebius.hardware.ceilings import Ceilings, ceilings
from moebius.hardware.processor import Usage

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Replace measurements with made-up rates. The list names what was measured, in order."""
    names = []

    def matmul_ceiling(device, dtype, seconds):
        names.append(f"products in {dtype}")
        return 1e11

    def copy_ceiling(device, seconds):
        names.append("copies")
        return 1e10

    monkeypatch.setattr(module, "matmul_ceiling", matmul_ceiling)
    monkeypatch.setattr(module, "copy_ceiling", copy_ceiling)
    monkeypatch.setattr(module, "Watch", lambda: watched(others=0.0))
    return names


def watched(others: float) -> Any:
    """Return the watch of a machine with two cores, of which this process uses one."""
    return SimpleNamespace(usage=lambda: Usage(own=1.0, others=others, cores=2))


def test_rates_that_were_measured_beside_others_are_not_kept(tmp_path, measured, monkeypatch):
    file = str(tmp_path / "ceilings.json")
    monkeypatch.setattr(module, "Watch", lambda: watched(others=1.0))
    assert ceilings(CPU, torch.float32, file) == Ceilings(flops=1e11, bytes=1e10)
    monkeypatch.setattr(module, "Watch", lambda: watched(others=0.0))
    ceilings(CPU, torch.float32, file)
    ceilings(CPU, torch.float32, file)
    assert measured == ["products in torch.float32", "copies"] * 2


def test_rates_are_measured_once_for_each_dtype(tmp_path, measured):
    file = str(tmp_path / "a folder" / "ceilings.json")
    for _ in range(2):
        assert ceilings(CPU, torch.float32, file) == Ceilings(flops=1e11, bytes=1e10)
    assert measured == ["products in torch.float32", "copies"]
    ceilings(CPU, torch.bfloat16, file)
    assert measured[2:] == ["products in torch.bfloat16", "copies"]
    ceilings(CPU, torch.float32, file)
    assert len(measured) == 4


def test_rates_that_earlier_versions_stored_are_found(tmp_path, measured, monkeypatch):
    file = tmp_path / "ceilings.json"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    cpu = f"CPU {platform.machine()}, 12 threads"
    key = f"{cpu}, bfloat16, torch {torch.__version__}"
    file.write_text(json.dumps({key: {"flops": 2.0, "bytes": 3.0}}))
    assert ceilings(CPU, torch.bfloat16, str(file)) == Ceilings(2.0, 3.0)
    assert not measured


def test_rates_of_other_devices_stay_in_the_file(tmp_path, measured):
    file = tmp_path / "ceilings.json"
    others = {"another GPU, bfloat16, torch 2.0": {"flops": 2.0, "bytes": 3.0}}
    file.write_text(json.dumps(others))
    ceilings(CPU, torch.float32, str(file))
    assert len(json.loads(file.read_text())) == 2 and others.items() <= (
        json.loads(file.read_text()).items()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["ceilings.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"flops": 1}', "\0"])
def test_a_file_that_cannot_be_read_is_ignored(tmp_path, measured, content):
    file = tmp_path / "ceilings.json"
    file.write_text(content)
    assert ceilings(CPU, torch.float32, str(file)) == Ceilings(1e11, 1e10)


def test_a_file_that_cannot_be_written_is_ignored(tmp_path, measured):
    (tmp_path / "file").write_text("")
    blocked = str(tmp_path / "file" / "ceilings.json")
    assert ceilings(CPU, torch.float32, blocked) == Ceilings(1e11, 1e10)
