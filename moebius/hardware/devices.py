"""The table of known GPUs: what their data sheets say, and the rates that plans assume.

An H100 was measured. Other GPUs are assumed to reach the same shares of their data sheets.
"""

import difflib
import re
from dataclasses import dataclass, replace

from moebius.cost.device import Device
from moebius.errors import ConfigError


@dataclass(frozen=True)
class Sheet:
    """What a GPU's data sheet says."""

    title: str
    """The words of the driver's name for the GPU that identify it."""
    flops: float
    """FLOP/s in bfloat16 without sparsity."""
    bytes: float
    """Bytes/s of its memory."""
    memory: float
    """Bytes of its memory that a process can use."""
    link: float
    """Bytes/s that it sends to the other GPUs of its machine while it receives at the same
    rate."""
    network: float
    """Bytes/s that it sends to GPUs in other machines while it receives at the same rate."""
    is_hopper: bool = False
    """Whether it is of the Hopper generation."""


SHEETS = (
    Sheet("B200", 2250e12, 8.0e12, 191e9, 900e9, 50e9),
    Sheet("H200 NVL", 835e12, 4.8e12, 149.9e9, 450e9, 50e9, is_hopper=True),
    Sheet("H200", 989e12, 4.8e12, 149.9e9, 450e9, 50e9, is_hopper=True),
    Sheet("H100 PCIe", 756e12, 2.0e12, 84.9e9, 64e9, 25e9, is_hopper=True),
    Sheet("H100 NVL", 835e12, 3.9e12, 100e9, 300e9, 50e9, is_hopper=True),
    Sheet("H100", 989e12, 3.35e12, 84.9e9, 450e9, 50e9, is_hopper=True),
    Sheet("A100-SXM4-40GB", 312e12, 1.56e12, 42.4e9, 300e9, 25e9),
    Sheet("A100 80GB PCIe", 312e12, 1.94e12, 84.9e9, 32e9, 25e9),
    Sheet("A100-PCIE-40GB", 312e12, 1.56e12, 42.4e9, 32e9, 25e9),
    Sheet("A100", 312e12, 2.04e12, 84.9e9, 300e9, 25e9),
    Sheet("L40S", 362e12, 0.86e12, 47.6e9, 32e9, 25e9),
    Sheet("RTX 4090", 165e12, 1.01e12, 25.2e9, 32e9, 12e9),
)
"""Known GPUs. `sheet_of` says which names they have."""
VENDOR = {"nvidia", "geforce"}
"""Words of a driver's name that identify no GPU."""
VARIANT = re.compile(r"sxm\d?|hbm\d\w?")
"""Matches a word that says in which form or with which kind of memory a GPU comes."""
SIZE = re.compile(r"(\d+)gb")

MEASURED = "H100"
"""Title of the GPU whose rates were measured."""
PRODUCTS, COPIES = 0.785, 0.896
"""Shares of its data sheet's rates that an H100 was measured to reach."""
LINKS = 0.8
"""Share of the data sheet's rates at which GPUs send to each other; assumed, not measured."""


def _device_of(sheet: Sheet) -> Device:
    """Return the device that plans assume for a data sheet."""
    is_measured = sheet.title == MEASURED
    assumed = "its data sheet, at the shares that an H100 was measured to reach of its own"
    return Device(
        name=_normalized(sheet.title),
        flops=PRODUCTS * sheet.flops,
        bytes=COPIES * sheet.bytes,
        memory=sheet.memory,
        link=LINKS * sheet.link,
        network=LINKS * sheet.network,
        source="measured" if is_measured else assumed,
        is_hopper=sheet.is_hopper,
    )


def _normalized(name: str) -> str:
    """Return a GPU's name as the table writes its keys: "RTX 4090" -> "rtx-4090"."""
    return name.strip().lower().replace(" ", "-")


DEVICES = {device.name: device for device in map(_device_of, SHEETS)}
"""Known GPUs by the name that users write."""


def sheet_of(name: str) -> Sheet | None:
    """Return the data sheet of a GPU by its driver's name for it or by a part of that name.

    Case does not matter, and words are separated by spaces or hyphens: "NVIDIA H100 80GB HBM3",
    "H100 SXM" and "h100" are one GPU. Return None if it is not known, as for a part of a GPU
    (MIG), or for one with other words in its name, such as "RTX 4090 Laptop GPU".
    """
    words = _words(name) - VENDOR
    fitting = [sheet for sheet in SHEETS if _is_variant(sheet, words)]
    return max(fitting, key=lambda sheet: len(_words(sheet.title)), default=None)


def _is_variant(sheet: Sheet, words: set[str]) -> bool:
    """Return whether the words name the GPU of a sheet, in any form, with the sheet's memory."""
    title = _words(sheet.title)
    sizes = [match for word in words - title if (match := SIZE.fullmatch(word))]
    others = [word for word in words - title if not SIZE.fullmatch(word)]
    return (
        title <= words
        and all(VARIANT.fullmatch(word) for word in others)
        and all(abs(int(size[1]) * 2**30 / sheet.memory - 1) < 0.1 for size in sizes)
    )


def _words(name: str) -> set[str]:
    return set(name.lower().replace("-", " ").split())


def device_named(name: str) -> Device:
    """Return the GPU of that name, which may be the driver's (see `sheet_of`).

    `here` is this machine's GPU, measured, or an H100 if the machine has none. Raises ConfigError,
    with the most similar name, for an unknown one.
    """
    key = _normalized(name)
    if key == "here":
        return _device_here()
    sheet = sheet_of(name)
    if sheet is None:
        close = difflib.get_close_matches(key, DEVICES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"--gpu {name}: must be here, or one of {', '.join(DEVICES)}{hint}")
    return DEVICES[_normalized(sheet.title)]


def _device_here() -> Device:
    """Return this machine's first GPU. What cannot be measured is taken from its data sheet."""
    import torch

    if not torch.cuda.is_available():
        return replace(DEVICES["h100"], source="measured on an H100; this machine has no GPU")
    from moebius.hardware.ceilings import ceilings
    from moebius.hardware.device import describe, total_memory

    device = torch.device("cuda")
    name, measured = describe(device), ceilings(device, torch.bfloat16)
    sheet = sheet_of(name)
    return replace(
        _device_of(sheet) if sheet else DEVICES["h100"],
        name=name,
        flops=measured.flops,
        bytes=measured.bytes,
        memory=total_memory(device),
        source="measured here",
    )
