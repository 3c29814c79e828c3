"""GPUs: what their data sheets say, and what of it a run can be planned with on paper."""

import difflib
from dataclasses import dataclass, replace

from moebius.errors import ConfigError


@dataclass(frozen=True)
class Sheet:
    """A data sheet. FLOP/s in bfloat16 without sparsity, bytes/s of memory, bytes of it; bytes/s that one GPU sends while it
    receives as much, to others in its machine and to other machines."""

    title: str
    flops: float
    bytes: float
    memory: float
    link: float
    network: float
    is_hopper: bool = False


SHEETS = (  # the first whose title is in a GPU's name is its own
    Sheet("B200", 2250e12, 8.0e12, 191e9, 900e9, 50e9),
    Sheet("H200", 989e12, 4.8e12, 149.9e9, 450e9, 50e9, is_hopper=True),
    Sheet("H100 PCIe", 756e12, 2.0e12, 84.9e9, 64e9, 25e9, is_hopper=True),
    Sheet("H100 NVL", 835e12, 3.9e12, 100e9, 300e9, 50e9, is_hopper=True),
    Sheet("H100", 989e12, 3.35e12, 84.9e9, 450e9, 50e9, is_hopper=True),
    Sheet("A100-SXM4-40GB", 312e12, 1.56e12, 42.4e9, 300e9, 25e9),
    Sheet("A100-PCIE-40GB", 312e12, 1.56e12, 42.4e9, 32e9, 25e9),
    Sheet("A100", 312e12, 2.04e12, 84.9e9, 300e9, 25e9),
    Sheet("L40S", 362e12, 0.86e12, 47.6e9, 32e9, 25e9),
    Sheet("RTX 4090", 165e12, 1.01e12, 25.2e9, 32e9, 12e9),
)
PRODUCTS, COPIES, LINKS = 0.785, 0.896, 0.8  # shares of the sheet that an H100 was measured to reach; of links, assumed


@dataclass(frozen=True)
class Device:
    """flops: of a large bfloat16 product, and bytes: of a large copy, a second; memory: bytes that a process can have; link and
    network: bytes a second that one device sends while it receives as much, inside a machine of `per_machine` and between
    machines; is_hopper: the experts' own kernels run on it."""

    name: str
    flops: float
    bytes: float
    memory: float
    link: float
    network: float
    source: str
    is_hopper: bool = False
    per_machine: int = 8


def _from_sheet(sheet: Sheet) -> Device:
    name = sheet.title.lower().replace(" ", "-")
    rates = (PRODUCTS * sheet.flops, COPIES * sheet.bytes, sheet.memory, LINKS * sheet.link, LINKS * sheet.network)
    source = (
        "measured" if sheet.title == "H100" else "its data sheet, at the shares that an H100 was measured to reach of its own"
    )
    return Device(name, *rates, source, sheet.is_hopper)


DEVICES = {device.name: device for device in map(_from_sheet, SHEETS)}


def sheet_of(name: str) -> Sheet | None:
    """By a GPU's name as its driver says it."""
    return next((sheet for sheet in SHEETS if sheet.title in name), None)


def device_named(name: str) -> Device:
    """here: this machine's GPU, as measured, or an H100 where there is none. Raises ConfigError with the nearest name for an
    unknown one."""
    if name == "here":
        return _here()
    if name not in DEVICES:
        close = difflib.get_close_matches(name, DEVICES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"--gpu {name}: here, or one of {', '.join(DEVICES)}{hint}")
    return DEVICES[name]


def _here() -> Device:
    import torch

    if not torch.cuda.is_available():
        return replace(DEVICES["h100"], source="measured; no GPU is here")
    from moebius.profile.ceilings import ceilings

    device = torch.device("cuda")
    name, found = torch.cuda.get_device_name(device), ceilings(device, torch.bfloat16)
    sheet = sheet_of(name)
    known = _from_sheet(sheet) if sheet else DEVICES["h100"]
    total = float(torch.cuda.get_device_properties(device).total_memory)
    return replace(known, name=name, flops=found.flops, bytes=found.bytes, memory=total, source="measured here")
