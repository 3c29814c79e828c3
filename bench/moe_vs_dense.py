"""Does the mixture pay? The preset against its dense twin: same text, steps and active parameters, several seeds.

    python bench/moe_vs_dense.py                      the preset tiny and its twin, three seeds
    python bench/moe_vs_dense.py --recipes            also every recipe that docs/log.md speaks of
    python bench/moe_vs_dense.py --jobs 2 --seeds 5 --train.steps 800

The table is sorted by bits per byte of the held-out text; the difference is against the twin of the same seed, with its
spread over the seeds.
"""

import argparse
import statistics

from variants import train_all

from moebius.cost import active_parameters
from moebius.presets import dense_twin
from moebius.settings import read_config


def recipe(base: float, experts: int, width: float, k: int, **more: float) -> list[str]:
    """Flags of one architecture; `more` are further fields of the model, or train's common_start."""
    fields = {"base_expansion": base, "num_experts": experts, "moe_min_expansion": width, "moe_max_expansion": width}
    flags = [f"--model.{name}={value}" for name, value in (fields | {"router_top_k": k, "aux_loss_coeff": 0.1} | more).items()]
    return [flag.replace("model.common_start", "train.common_start") for flag in flags]


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
    dense = ["--model.num_experts", "0", "--model.base_expansion", str(twin.base_expansion), "--model.residual_mix", "add"]
    variants = {"preset": flags, "dense twin": flags + dense}
    if options.recipes:
        variants |= {name: flags + recipe for name, recipe in RECIPES.items()}
    for name, own in variants.items():
        active = active_parameters(read_config(options.config, own).model)
        print(f"{name}: {active:,} active parameters ({active / active_parameters(twin) - 1:+.2%} against the twin)")
    runs = train_all(options.config, variants, options.seeds, options.jobs)
    results = {name: [metrics[-1] for metrics in by_seed] for name, by_seed in runs.items()}
    print(f"\n{options.config}, {config.train.steps} steps, {options.seeds} seeds, held-out bits per byte")
    print(f"{'variant':<44} {'bpb':>7} {'against twin':>16}  {'worst CV':>8} {'tok/s':>8}   by seed")
    for name in sorted(results, key=lambda name: statistics.mean(run["val_bpb"] for run in results[name])):
        print(_row(name, results[name], results["dense twin"]))


def _row(name: str, runs: list[dict], twins: list[dict]) -> str:
    bpb = [run["val_bpb"] for run in runs]
    gaps = [run["val_bpb"] - twin["val_bpb"] for run, twin in zip(runs, twins, strict=True)]
    spread = f"±{statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
    speed = statistics.median(run["tokens_per_second"] for run in runs)
    worst = max(max(run["cv"], default=0.0) for run in runs)
    each = " ".join(f"{value:.4f}" for value in bpb)
    return (
        f"{name:<44} {statistics.mean(bpb):7.4f} {statistics.mean(gaps):+8.4f} {spread:>7}  {worst:8.2f} {speed:8.0f}   {each}"
    )


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="preset or TOML file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--recipes", action="store_true", help="also the recipes of docs/log.md")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
