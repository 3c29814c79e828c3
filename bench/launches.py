"""Measure whole training steps with and without CUDA graphs, and how long the host launches them.

    python bench/launches.py                          a small mixture with Muon, and its dense twin
    python bench/launches.py --preset standard --train.batch_size 16

Any flags change the configuration. The variants take turns, A B C D A B C D; figures are medians.
`host` is the time in which the host launches a step while the device has nothing else to do; where
it is the larger, the device waits for the host. `over its twin` is the dense twin's time, with or
without graphs like the variant, over the variant's. `--reference` adds the mixture with the
readable reference of routing and statistics in place of our kernels.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from flags import layered

from moebius.config import Config
from moebius.config.files import read_config
from moebius.config.presets import dense_twin
from moebius.hardware.backends import backends_for
from moebius.model.transformer import lookahead, seeded
from moebius.moe import router
from moebius.moe import statistics as routing_statistics
from moebius.parallel.layout import lay_out
from moebius.train.graphs import WARM_UP, GraphedPasses
from moebius.train.state import TrainState
from moebius.train.step import train_step

ROUNDS, STEPS = 5, 4
SMALL = (
    *("--model.dim=512", "--model.num_layers=12", "--model.num_heads=8", "--model.num_kv_heads=8"),
    *("--model.vocab_size=16384", "--model.num_experts=32", "--model.router_top_k=4"),
    *("--model.moe_min_expansion=0.75", "--model.moe_max_expansion=0.75"),
    *("--train.batch_size=64", "--train.micro_batch_size=0", "--train.seq_len=1024"),
    "--train.optimizer=muon",
)
"""What makes `standard` the mixture of small experts of the experiment log."""
DEVICE = torch.device("cuda")


class Variant:
    """A model in training, with or without graphs."""

    def __init__(self, config: Config, uses_reference: bool = False):
        self.config, self.patches = config, ()
        if uses_reference:
            self.patches = tuple(
                (module, "uses_kernels", lambda *_: False)
                for module in (router, routing_statistics)
            )
        model = seeded(0, config.model, backends_for(config, DEVICE)).to(DEVICE)
        lay_out(model, config.parallel, DEVICE)
        self.state = TrainState.new(model, config)
        self.graphs = GraphedPasses(config, DEVICE, lambda line: print(line, flush=True))
        self.tokens_BL = torch.randint(
            config.model.vocab_size,
            (config.train.batch_size, config.train.seq_len + lookahead(config.model)),
            device=DEVICE,
        )

    def run(self, steps: int, with_graphs: bool) -> tuple[float, float]:
        """Return the milliseconds of a step, and those that the host takes to launch the first."""
        separator = 0 if self.config.data.document_masking else None
        host = 0.0
        torch.cuda.synchronize()
        with ExitStack() as stack:
            for place, name, value in self.patches:
                stack.enter_context(patch.object(place, name, value))
            start = time.perf_counter()
            for number in range(steps):
                train_step(
                    self.state,
                    self.tokens_BL,
                    separator,
                    self.config.train,
                    run=self.graphs if with_graphs else None,
                )
                if not number:
                    host = time.perf_counter() - start
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps * 1e3, host * 1e3


def main() -> None:
    options, config = _options()
    variants = {"mixture": Variant(config)}
    if not options.no_twin:
        twin = replace(config, model=dense_twin(config.model))
        variants["dense twin"] = Variant(twin)
    if options.reference:
        variants["mixture, reference"] = Variant(config, uses_reference=True)
    for variant in variants.values():
        variant.run(2, with_graphs=False)
        variant.run(WARM_UP + 2, with_graphs=True)
    runs: dict[tuple[str, bool], Callable[[], tuple[float, float]]] = {
        (name, with_graphs): lambda v=variant, g=with_graphs: v.run(STEPS, g)
        for name, variant in variants.items()
        for with_graphs in (False, True)
    }
    times: dict[tuple[str, bool], list[tuple[float, float]]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            times[key].append(run())
    _print(config, times)


def _print(config: Config, times: dict[tuple[str, bool], list[tuple[float, float]]]) -> None:
    tokens = config.train.batch_size * config.train.seq_len
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {tokens:,} tokens per step")
    print(f"{'':34}{'ms':>9}{'host ms':>9}{'tokens/s':>10}{'over its twin':>15}")
    step = {key: statistics.median(ms for ms, _ in all_times) for key, all_times in times.items()}
    for (name, with_graphs), all_times in times.items():
        key = (name, with_graphs)
        host = statistics.median(host for _, host in all_times)
        what = f"{name}, {'CUDA graphs' if with_graphs else 'no graphs'}"
        twin = step.get(("dense twin", with_graphs))
        ratio = f"{twin / step[key]:15.3f}" if twin else ""
        figures = f"{step[key]:9.2f}{host:9.2f}{tokens / step[key]:9.1f}k"
        print(f"{what:34}{figures}{ratio}")


def _options() -> tuple[Any, Config]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", help="a preset in place of the small mixture")
    parser.add_argument("--no-twin", action="store_true", help="without the dense twin")
    parser.add_argument("--reference", action="store_true", help="also without routing kernels")
    options, flags = parser.parse_known_args()
    defaults = ["--parallel.cuda_graphs=on", *(() if options.preset else SMALL)]
    return options, read_config(options.preset or "standard", layered(defaults, flags))


if __name__ == "__main__":
    main()
