"""What the founding document reports: the figures that bench/founding_tables.py compares with."""

# docs/founding.md, sections 1 (Performance Bottleneck Analysis), 2 (MTP), 4 (Expert Load
# Balancing) and Performance Summary
MS = {"with base MLP": 159.1, "without": 77.3, "with MTP": 103.51, "without MTP": 78.77}
"""Milliseconds of a forward pass."""
LOADS = "32.6 58.1 9.4"
"""Shares of the tokens that three experts took without balancing, in percent."""
CV = 0.73
"""Coefficient of variation of these shares."""
GOAL = "< 0.3"
"""The coefficient of variation that the document asks for."""
SWITCH = "1.06"
"""Time with the switch router over that with softmax top-1."""
SPEED = {
    "Original PR-MoE": ("57k", "950-1200"),
    "No Base MLP": ("120k", "~500"),
    "+ Optimized Routing": ("150k+", "~400"),
    "+ No MTP": ("180k+", "~300"),
    "Dense 112M baseline": ("200k", "~250"),
    "standard (its recommendation)": ("150-180k", ""),
}
"""Tokens/s and milliseconds of a forward pass, by configuration."""
