"""GPUs by name, and their rates."""

import pytest

from moebius.errors import ConfigError
from moebius.profile.devices import DEVICES, SHEETS, device_named, sheet_of


def test_a_gpu_by_the_name_its_driver_says():
    found = {name: sheet_of(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "Radeon")}
    assert [sheet and sheet.title for sheet in found.values()] == ["H100", "H100 PCIe", "A100", None]


def test_an_h100_reaches_what_it_was_measured_to():
    assert DEVICES["h100"].flops == pytest.approx(776e12, rel=0.005)
    assert DEVICES["h100"].bytes == pytest.approx(3.0e12, rel=0.005)
    assert DEVICES["h100"].source == "measured"


def test_every_sheet_is_a_device_below_it():
    for sheet, device in zip(SHEETS, DEVICES.values(), strict=True):
        assert device.flops < sheet.flops and device.bytes < sheet.bytes and device.link < sheet.link
        assert device.memory == sheet.memory


def test_an_unknown_name():
    with pytest.raises(ConfigError, match=r"--gpu a10: here, or one of .*; did you mean a100\?"):
        device_named("a10")
