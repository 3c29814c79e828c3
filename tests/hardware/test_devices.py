"""GPUs by name, and the rates that plans assume for them."""

from dataclasses import replace

import pytest
import torch

from moebius.errors import ConfigError
from moebius.hardware import ceilings as ceilings_module
from moebius.hardware.ceilings import Ceilings
from moebius.hardware.devices import DEVICES, SHEETS, device_named, sheet_of


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h100 sxm5", "H100"),
        ("A100 80GB", "A100"),
        ("a100 40gb pcie", "A100-PCIE-40GB"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_says(name, title):
    sheet = sheet_of(name)
    assert sheet is not None and sheet.title == title
    for written in (name, name.upper(), name.lower(), name.replace(" ", "-")):
        assert device_named(written) is DEVICES[title.lower().replace(" ", "-")]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.title)
def test_every_sheet_is_found_by_its_title(sheet):
    assert sheet_of(sheet.title) is sheet_of(f"NVIDIA {sheet.title}") is sheet


@pytest.mark.parametrize(
    "name",
    [
        "Radeon",
        "",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA L40",
    ],
)
def test_a_gpu_without_a_data_sheet(name):
    """Other GPUs have names that contain those of known ones."""
    assert sheet_of(name) is None


def test_an_h100_reaches_what_it_was_measured_to():
    assert DEVICES["h100"].flops == pytest.approx(776e12, rel=0.005)
    assert DEVICES["h100"].bytes == pytest.approx(3.0e12, rel=0.005)
    assert DEVICES["h100"].source == "measured"


def test_every_device_stays_below_its_data_sheet():
    for sheet, device in zip(SHEETS, DEVICES.values(), strict=True):
        assert device.flops < sheet.flops and device.bytes < sheet.bytes
        assert device.link < sheet.link and device.network < sheet.network
        assert device.memory == sheet.memory and device.is_hopper == sheet.is_hopper
        assert (device.source == "measured") == (sheet.title == "H100")


@pytest.mark.parametrize("name", ["rtx-4090", "RTX 4090", "Rtx-4090", " rtx 4090 "])
def test_names_are_accepted_in_any_letter_case(name):
    assert device_named(name) is DEVICES["rtx-4090"]


@pytest.mark.parametrize("name", ["a10", "A10"])
def test_an_unknown_name_suggests_the_nearest(name):
    message = rf"--gpu {name}: must be here, or one of .*; did you mean a100\?"
    with pytest.raises(ConfigError, match=message):
        device_named(name)


def test_a_machine_without_a_gpu_is_planned_as_an_h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    source = "measured on an H100; this machine has no GPU"
    assert device_named("here") == replace(DEVICES["h100"], source=source)
    assert device_named("HERE") == device_named("here")


@pytest.mark.parametrize(
    ("name", "like"), [("NVIDIA A100-SXM4-80GB", "a100"), ("an unknown GPU", "h100")]
)
def test_this_machines_gpu_is_measured(monkeypatch, name, like):
    class Properties:
        total_memory = 81e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(ceilings_module, "ceilings", lambda device, dtype: Ceilings(2e14, 1e12))
    assert device_named("here") == replace(
        DEVICES[like], name=name, flops=2e14, bytes=1e12, memory=81e9, source="measured here"
    )
