"""Format numbers and sizes for people to read."""

from collections.abc import Mapping

_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float, decimals: int = 1) -> str:
    """Return the number with a metric prefix: 947700000 -> "947.7M"."""
    for size, letter in _SIZES:
        if number >= size:
            return f"{number / size:.{decimals}f}{letter}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, in the plural unless it is 1: (2, "core") -> "2 cores"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def gigabytes(size: float, decimals: int = 1) -> str:
    """Return a number of bytes in units of 10^9: 1.25e9 -> "1.2 GB"."""
    return f"{size / 1e9:.{decimals}f} GB"


def gigabytes_by_name(sizes: Mapping[str, float]) -> str:
    """Return named numbers of bytes in GB: "weights 0.01, activations 0.12"."""
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
