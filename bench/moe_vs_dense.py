"""Compare a mixture of experts with its dense twin, on the same text and for the same steps.

    python bench/moe_vs_dense.py                      the preset tiny and its twin, three seeds
    python bench/moe_vs_dense.py --recipes            other architectures too
    python bench/moe_vs_dense.py --jobs 2 --seeds 5 --train.steps 800

The twin is a dense model with as many parameters as are active per token. The table is sorted by
bits per byte of the held-out text. Differences are to the twin of the same seed; their mean and
spread over the seeds are printed.
"""

import argparse
import statistics

from flags import layered
from variants import train_all

from moebius.config.files import read_config
from moebius.config.presets import dense_twin
from moebius.cost.counts import active_parameters


def recipe(base: float, experts: int, width: float, k: int, **changes: float) -> list[str]:
    """Return the flags of one architecture.

    changes: further fields of the model section, or `common_start` of the train section.
    """
    fields = {
        "base_expansion": base,
        "num_experts": experts,
        "moe_min_expansion": width,
        "moe_max_expansion": width,
        "router_top_k": k,
        "aux_loss_coeff": 0.1,
        **changes,
    }
    sections = {"common_start": "train"}
    return [f"--{sections.get(name, 'model')}.{name}={value}" for name, value in fields.items()]


RECIPES = {
    "4 x 3, top-1, gate = probability": recipe(0, 4, 3, 1),
    "4 x 3, top-1, balance 0.01": recipe(0, 4, 3, 1, aux_loss_coeff=0.01),
    "4 x 3, top-1, gate x 2": recipe(0, 4, 3, 1, gate_scale=2),
    "4 x 3, top-1, gate x 4": recipe(0, 4, 3, 1, gate_scale=4),
    "4 x 3, top-1, gate x 4, common start 0.2": recipe(0, 4, 3, 1, gate_scale=4, common_start=0.2),
    "4 x 3, top-1, gate x 4, common start 0.5": recipe(0, 4, 3, 1, gate_scale=4, common_start=0.5),
    "base 1.5 + 4 x 1.5, top-1": recipe(1.5, 4, 1.5, 1),
    "base 1.5 + 4 x 1.5, top-1, gate x 2": recipe(1.5, 4, 1.5, 1, gate_scale=2),
    "8 x 1.5, top-2": recipe(0, 8, 1.5, 2),
    "8 x 1.5, top-2, balance 0.01": recipe(0, 8, 1.5, 2, aux_loss_coeff=0.01),
    "12 x 1, top-3": recipe(0, 12, 1, 3),
    "base 1 + 8 x 1, top-2": recipe(1, 8, 1, 2),
    "16 x 0.5, top-6": recipe(0, 16, 0.5, 6),
}


def main() -> None:
    options, flags = _options()
    config = read_config(options.config, flags)
    twin = dense_twin(config.model)
    dense = [
        "--model.num_experts=0",
        f"--model.base_expansion={twin.base_expansion}",
        "--model.residual_mix=add",
    ]
    variants = {"preset": flags, "dense twin": layered(flags, dense)}
    if options.recipes:
        variants |= {name: layered(flags, own_flags) for name, own_flags in RECIPES.items()}
    for name, own_flags in variants.items():
        active = active_parameters(read_config(options.config, own_flags).model)
        excess = active / active_parameters(twin) - 1
        print(f"{name}: {active:,} active parameters ({excess:+.2%} compared with the twin)")
    runs = train_all(options.config, variants, options.seeds, options.jobs)
    results = {name: [metrics[-1] for metrics in by_seed] for name, by_seed in runs.items()}
    size = f"{options.config}, {config.train.steps} steps, {options.seeds} seeds"
    print(f"\n{size}, held-out bits per byte")
    head = f"{'variant':<44} {'bpb':>7} {'minus twin':>16}  {'worst CV':>8} {'tok/s':>8}"
    print(f"{head}   by seed")
    for name in sorted(results, key=lambda name: _mean_bpb(results[name])):
        print(_row(name, results[name], results["dense twin"]))


def _mean_bpb(runs: list[dict]) -> float:
    return statistics.mean(run["val_bpb"] for run in runs)


def _row(name: str, runs: list[dict], twins: list[dict]) -> str:
    """Return a line of the table from the last metrics of a variant's runs and of the twin's."""
    gaps = [run["val_bpb"] - twin["val_bpb"] for run, twin in zip(runs, twins, strict=True)]
    spread = f"±{statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
    speed = statistics.median(run["tokens_per_second"] for run in runs)
    worst_cv = max(max(run["cv"], default=0.0) for run in runs)
    by_seed = " ".join(f"{run['val_bpb']:.4f}" for run in runs)
    return (
        f"{name:<44} {_mean_bpb(runs):7.4f} {statistics.mean(gaps):+8.4f} {spread:>7}  "
        f"{worst_cv:8.2f} {speed:8.0f}   {by_seed}"
    )


def _options() -> tuple[argparse.Namespace, list[str]]:
    """Return the script's own options and the configuration's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny", help="preset or TOML file")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--recipes", action="store_true", help="compare other architectures too")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
