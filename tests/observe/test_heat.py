"""The picture of the experts' shares in one step."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moebius.moe.load import dead_share
from moebius.observe.heat import COLORS, DEAD, NOTHING, heat_map, heat_png
from moebius.observe.heat_strip import EDGES
from tests.observe.made_up import metrics_of


def test_colors_compare_shares_with_an_even_share():
    loads = [[10, 20, 30, 40], [], [0, 100], [25, 25, 25, 25]]
    levels = heat_map(with_loads(loads))
    assert levels.shape == (4, 4)
    # 0.4, 0.8, 1.2 and 1.6 times the even share
    assert levels[0].tolist() == [1, 3, 3, 4]
    assert levels[1].tolist() == [NOTHING] * 4
    assert levels[2].tolist() == [DEAD, 5, NOTHING, NOTHING]
    assert levels[3].tolist() == [3, 3, 3, 3]


def with_loads(loads):
    """Return the metrics of a step with these loads."""
    step = metrics_of()
    return replace(step, layers=[replace(step.layers[0], tokens_per_expert=n) for n in loads])


def test_every_level_has_a_color():
    assert len(bytes.fromhex(COLORS)) == 3 * (NOTHING + 1)
    assert len(EDGES) + 1 == DEAD


def test_no_tokens_at_all_are_dead_experts():
    assert heat_map(with_loads([[0, 0]])).tolist() == [[DEAD, DEAD]]


@pytest.mark.parametrize(("num_layers", "num_experts"), [(24, 64), (3, 256), (1, 1), (2, 2000)])
def test_a_picture_has_a_cell_for_each_expert(num_layers, num_experts):
    generator = np.random.default_rng(0)
    loads = generator.lognormal(3, 1.5, (num_layers, num_experts)).astype(int).tolist()
    metrics = with_loads(loads)
    png, width, height = heat_png(metrics)
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (width, height) and len(png) < 60_000
    assert width <= max(768, num_experts)
    pixels = np.asarray(picture.convert("RGB"))
    palette = np.frombuffer(bytes.fromhex(COLORS), np.uint8).reshape(-1, 3)
    levels = heat_map(metrics)
    tall, wide = height // num_layers, width // num_experts
    assert (pixels[tall // 2 :: tall, wide // 2 :: wide] == palette[levels]).all()
    shares = np.array(loads) / np.array(loads).sum(axis=1, keepdims=True)
    assert ((levels == DEAD) == (shares < dead_share(num_experts))).all()
