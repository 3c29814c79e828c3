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


def byte_size(size: float, decimals: int = 1) -> str:
    """Return a number of bytes in units of 10^9 or, if that shows nothing of it, of 10^6.

    1.25e9 -> "1.2 GB"; 3.2e6 -> "3.2 MB".
    """
    unit, name = _byte_unit(size, decimals)
    return f"{size / unit:,.{decimals}f} {name}"


def itemized(total: float, parts: Mapping[str, float], of: str = "") -> str:
    """Return a number of bytes and its named parts, in the unit of the total.

    "1.5 GB: weights 0.01, activations 1.50", or "1.5 GB of 85 GB: ..." where `of` is "85 GB".
    """
    unit, _ = _byte_unit(total, decimals=1)
    by_name = ", ".join(f"{name} {size / unit:.2f}" for name, size in parts.items())
    return f"{byte_size(total)}{of and f' of {of}'}: {by_name}"


def _byte_unit(size: float, decimals: int) -> tuple[float, str]:
    """Return the largest unit that shows a digit of the size, in bytes and by name."""
    return (1e9, "GB") if size >= 1e9 / 10**decimals else (1e6, "MB")
