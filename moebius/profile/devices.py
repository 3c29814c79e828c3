"""GPUs that a run can be planned for, on paper."""

import difflib
from dataclasses import dataclass, replace

from moebius.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """flops: of a large bfloat16 product, and bytes: of a large copy, a second; memory: bytes that a process can have; link and
    network: bytes a second that one device sends while it receives as much, inside a machine of `per_machine` and between
    machines."""

    name: str
    flops: float
    bytes: float
    memory: float
    link: float
    network: float
    per_machine: int
    source: str


MEASURED = "measured"
SHEET = "data sheet, at the share of it that an H100 was measured to reach: 78% of its products, 90% of its memory"
DEVICES = {
    device.name: device
    for device in (
        Device("h100", 776e12, 3.0e12, 84.9e9, 360e9, 45e9, 8, f"{MEASURED}; links from the data sheet, at 80%"),
        Device("h200", 776e12, 4.3e12, 149.9e9, 360e9, 45e9, 8, SHEET),
        Device("a100", 243e12, 1.84e12, 84.9e9, 240e9, 22e9, 8, SHEET),
        Device("b200", 1755e12, 7.2e12, 191e9, 720e9, 45e9, 8, SHEET),
        Device("l40s", 282e12, 0.78e12, 47.6e9, 25e9, 22e9, 8, SHEET),
        Device("rtx4090", 129e12, 0.91e12, 25.2e9, 20e9, 11e9, 4, SHEET),
    )
}


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
        return replace(DEVICES["h100"], source=f"no GPU is here, so an H100: {DEVICES['h100'].source}")
    from moebius.profile.ceilings import ceilings

    device = torch.device("cuda")
    title, found = torch.cuda.get_device_name(device), ceilings(device, torch.bfloat16)
    known = next((each for each in DEVICES.values() if each.name in title.lower().replace(" ", "")), DEVICES["h100"])
    total = float(torch.cuda.get_device_properties(device).total_memory)
    return replace(known, name=title, flops=found.flops, bytes=found.bytes, memory=total, source="measured here; links assumed")
