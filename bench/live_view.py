"""Print what the live view costs: what training waits for, and what its thread computes.

    python bench/live_view.py                      24 layers of 64 experts, at 120 x 40
    python bench/live_view.py --layers 96 --experts 512 --size 200x50

The load of a step is made up, and as uneven as costs most. `hand over` is the part of a logged
step that training waits for. `drawn anew` is a picture after a logged step, and `a tick` one of
those in between, four per second. The shares are of the time of GPU steps of 200 ms, every tenth
of which is logged. Long pictures are drawn less often, so that the thread's share has a limit
(moebius/observe/view.py); training only waits for it if both need Python's lock.
"""

import argparse
import io
import math
import os
import time
from collections.abc import Callable

import numpy as np
from made_up_step import made_up_step
from rich.console import Console

from moebius.data.output import Output
from moebius.observe.live import FRAME_SECONDS, Live
from moebius.observe.metrics import StepMetrics
from moebius.observe.so_far import SoFar
from moebius.observe.view import SHARE, View

STEP_SECONDS, LOG_EVERY = 0.2, 10


def made_up(step: int, num_layers: int, num_experts: int) -> StepMetrics:
    """Return the figures of a step with uneven loads and dead experts, which cost most."""
    generator = np.random.default_rng(step)
    loads: list[list[int]] = []
    for _ in range(num_layers):
        loads_E = np.exp(generator.normal(size=num_experts) * 1.5)
        loads.append(generator.multinomial(2**17, loads_E / loads_E.sum()).tolist())
    return made_up_step(step, loads, generator)


def milliseconds(work: Callable[[], object]) -> float:
    """Return the time that a call takes on a processor."""
    start = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - start)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--size", default="120x40")
    options = parser.parse_args()
    os.environ["COLUMNS"], os.environ["LINES"] = options.size.split("x")
    so_far = SoFar("bench", 100_000)
    output = Output(io.StringIO())
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256")
    live = Live(View(so_far, share=math.inf).rows, lambda: so_far.version, console, output)
    handed: list[float] = []
    anew: list[float] = []
    ticks: list[float] = []
    steps = [made_up(10 * n, options.layers, options.experts) for n in range(1, 301)]
    for metrics in steps:
        handed.append(milliseconds(lambda metrics=metrics: so_far.add(metrics)))
        anew.append(milliseconds(live.refresh))
        so_far.step += 1
        so_far.seconds = float(so_far.step)
        ticks.append(milliseconds(live.refresh))
    print(f"{options.layers} layers of {options.experts} experts, {options.size}")
    for name, values in (("hand over", handed), ("drawn anew", anew), ("a tick", ticks)):
        print(f"{name:<11} {np.median(values):.3f} ms (90%: {np.quantile(values, 0.9):.3f} ms)")
    span = STEP_SECONDS * LOG_EVERY
    shares = [float(np.median(values)) / 1e3 / span for values in (handed, anew, ticks)]
    handed_over, anew_share, tick_share = shares
    thread = min(anew_share, SHARE) + span / FRAME_SECONDS * tick_share
    print(f"share       {handed_over:.4%} in training, and {thread:.2%} in the view's thread")


if __name__ == "__main__":
    main()
