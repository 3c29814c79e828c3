"""A picture of how the experts of each layer share the load in one step: layers are rows."""

import io

import numpy as np
from PIL import Image

from moebius.observe.heat_strip import DEAD as DEAD_LEVEL
from moebius.observe.heat_strip import EDGES, levels_of
from moebius.observe.metrics import StepMetrics

DEAD, NOTHING = len(EDGES) + 1, len(EDGES) + 2
"""Colors of a dead expert, and of a place without an expert. That of any other expert is the
number of its level."""
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
        if not counts:
            continue
        level_E = levels_of(np.array(counts) / max(1, sum(counts)))
        levels_ME[number, : len(counts)] = np.where(level_E == DEAD_LEVEL, DEAD, level_E)
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
