"""A picture of how the experts of each layer share the load in one step: layers are rows."""

import io

import numpy as np
from PIL import Image

from moebius.moe.load import dead_share
from moebius.observe.metrics import StepMetrics

EDGES = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
"""Multiples of an even share at which the color changes, as in the heat maps of a report."""
DEAD, NOTHING = len(EDGES) + 1, len(EDGES) + 2
"""Colors of a dead expert, and of a place without an expert."""
COLORS = "14508f 5b9bd5 b9d6ee eef0f2 f9d3a5 e8863a a33a06 c2189b 808080"
"""Those of page.css: from little load to much, a dead expert, and no expert."""
WIDEST = 768  # pixels of a row
TALLEST_CELL = 12  # pixels


def heat_map(metrics: StepMetrics) -> np.ndarray:
    """Return the number of each expert's color, as an array of layers x experts of uint8."""
    loads = [layer.tokens_per_expert for layer in metrics.layers]
    width = max(map(len, loads), default=0)
    levels_ME = np.full((len(loads), width), NOTHING, np.uint8)
    for number, counts in enumerate(loads):
        total = sum(counts)
        if not counts:
            continue
        share_E = np.array(counts) / max(1, total)
        level_E = np.searchsorted(EDGES, share_E * len(counts), side="right")
        levels_ME[number, : len(counts)] = np.where(
            share_E < dead_share(len(counts)), DEAD, level_E
        )
    return levels_ME


def heat_png(metrics: StepMetrics) -> tuple[bytes, int, int]:
    """Return the heat map as a PNG file, with its width and height in pixels.

    The model must have experts.
    """
    levels_ME = heat_map(metrics)
    wide = max(1, min(TALLEST_CELL, WIDEST // levels_ME.shape[1]))
    pixels = levels_ME.repeat(TALLEST_CELL, axis=0).repeat(wide, axis=1)
    image = Image.fromarray(pixels, mode="P")
    image.putpalette(bytes.fromhex(COLORS))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue(), image.width, image.height
