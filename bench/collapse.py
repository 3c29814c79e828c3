"""Show whether experts collapse without balancing, and how well each cure works.

    python bench/collapse.py                       `tiny` with three top-1 experts, as in the
                                                   founding document
    python bench/collapse.py --as-it-is            the preset's own experts
    python bench/collapse.py --jobs 8 --seeds 3 --train.device cuda --plot collapse.png

All runs share one model and text. One has no balancing at all (the control); every other has one
cure. The table has the founding document's columns, CV and share of the tokens per expert, for the
layer that is worst at the end. It also has the worst layer's CV after 100 steps, the dead experts,
and the held-out bits per byte with the difference to the control. CV is given for one batch, which
is never even because a batch has only a few documents, and for the last five logged batches
together. If the control does not collapse, the table shows nothing, and the script fails.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import matplotlib
from flags import layered
from variants import train_all

from moebius.config.files import read_config
from moebius.moe.load import variation

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLLAPSED = 0.7
"""The control's CV at the end must be above this."""
THREE_EXPERTS = [
    "--model.num_experts=3",
    "--model.router_top_k=1",
    "--model.moe_min_expansion=3",
    "--model.moe_max_expansion=3",
]
CONTROL = "no balancing"


def cure(loss: float = 0.0, bias: float = 0.0, **changes: object) -> list[str]:
    """Return the flags of a cure.

    loss: coefficient of the balance loss. bias: rate of the loss-free bias. changes: further
    fields of the model section.
    """
    fields = {"aux_loss_coeff": loss, "router_bias_rate": bias} | changes
    return [f"--model.{name}={value}" for name, value in fields.items()]


CURES = {
    CONTROL: cure(),
    "balance loss 0.01": cure(0.01),
    "balance loss 0.1": cure(0.1),
    "balance loss 0.1, each sequence": cure(0.1, aux_loss_scope="sequence"),
    "balance loss 0.1, global batch": cure(0.1, aux_loss_scope="global_batch"),
    "loss-free bias": cure(0.0, 0.001),
    "loss-free bias + balance loss 0.01": cure(0.01, 0.001),
    "z-loss 0.001 alone": cure(router_z_loss_coeff=0.001),
    "jitter 0.01 alone": cure(router_jitter=0.01),
}
SWITCH = {
    "switch, no balancing": cure(router_type="switch"),
    "switch, balance loss 0.1": cure(0.1, router_type="switch"),
}


def main() -> None:
    options, flags = _options()
    if not options.as_it_is:
        flags = layered(THREE_EXPERTS, flags)
    config = read_config(options.config, flags)
    cures = CURES | (SWITCH if config.model.router_top_k == 1 else {})
    if options.only:
        cures = {name: cures[name] for name in (CONTROL, *options.only)}
    if config.train.batch_size % 2 == 0:
        # two micro-batches, so that a global batch is more than one
        flags = layered(flags, [f"--train.micro_batch_size={config.train.batch_size // 2}"])
    variants = {name: layered(flags, own_flags) for name, own_flags in cures.items()}
    results = train_all(options.config, variants, options.seeds, options.jobs)
    print(f"\n{options.config} {' '.join(flags)}, {options.seeds} seeds")
    print("shares of the worst layer at the end, first seed")
    print(f"{'':<36} {'CV at step 100':>15} {'CV at the end':>15}")
    columns = f"{'batch':>8} {'five':>6} {'batch':>8} {'five':>6} {'dead':>5} {'bpb':>7}"
    shares = "share of the tokens per expert, %"
    print(f"{'':<36} {columns} {'minus control':>17}   {shares}")
    for name, runs in results.items():
        print(_row(name, runs, results[CONTROL]))
    if options.plot:
        _plot(results, options.plot)
    worst_cv = max(max(metrics[-1]["cv"]) for metrics in results[CONTROL])
    if worst_cv <= COLLAPSED:
        sys.exit(
            f"the control did not collapse: its worst CV at the end is {worst_cv:.2f}, and the "
            f"table means something only above {COLLAPSED}"
        )


def _row(name: str, runs: list[list[dict]], control: list[list[dict]]) -> str:
    """Return a line of the table.

    CV and dead experts are the worst over the seeds, the loss is the mean over the seeds.
    """
    cvs = [
        max(_worst_cv(metrics, step, batches) for metrics in runs)
        for step in (100, math.inf)
        for batches in (1, 5)
    ]
    dead = max(sum(metrics[-1]["dead_experts"]) for metrics in runs)
    bpb = statistics.mean(metrics[-1]["val_bpb"] for metrics in runs)
    pairs = zip(runs, control, strict=True)
    gaps = [metrics[-1]["val_bpb"] - baseline[-1]["val_bpb"] for metrics, baseline in pairs]
    spread = f"±{statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
    counts = runs[0][-1]["tokens_per_expert"][_worst_layer(runs[0])]
    shares = " ".join(f"{100 * count / sum(counts):5.1f}" for count in counts)
    return (
        f"{name:<36} {cvs[0]:8.2f} {cvs[1]:6.2f} {cvs[2]:8.2f} {cvs[3]:6.2f} {dead:5d} "
        f"{bpb:7.4f} {statistics.mean(gaps):+9.4f} {spread:>7}   {shares}"
    )


def _worst_cv(metrics: list[dict], step: float, batches: int) -> float:
    """Return the largest CV of a layer over the last `batches` logged batches up to a step."""
    lines = [line["tokens_per_expert"] for line in metrics if line["step"] <= step][-batches:]
    return max(
        variation([sum(counts) for counts in zip(*layer, strict=True)])
        for layer in zip(*lines, strict=True)
    )


def _worst_layer(metrics: list[dict]) -> int:
    """Return the number of the layer with the largest CV at the end."""
    return max(range(len(metrics[-1]["cv"])), key=lambda layer: metrics[-1]["cv"][layer])


def _plot(results: dict[str, list[list[dict]]], path: Path) -> None:
    """Plot each expert's share over the steps, in the layer that is worst at the end."""
    columns = 3
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(12, 2.6 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, (name, runs) in zip(axes.flat, results.items(), strict=False):
        layer = _worst_layer(runs[0])
        steps = [line["step"] for line in runs[0]]
        counts = [line["tokens_per_expert"][layer] for line in runs[0]]
        shares = [[100 * count / sum(row) for count in row] for row in counts]
        num_experts = len(counts[0])
        colors = plt.get_cmap("viridis_r")([i / num_experts for i in range(num_experts)])
        axis.stackplot(steps, *zip(*shares, strict=True), colors=colors)
        cv = runs[0][-1]["cv"][layer]
        axis.set_title(f"{name}\nlayer {layer}, CV {cv:.2f} at the end", fontsize=9)
        axis.set_ylim(0, 100)
        axis.margins(x=0)
    figure.supxlabel("step")
    figure.supylabel("share of the layer's tokens, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _options() -> tuple[argparse.Namespace, list[str]]:
    """Return the script's own options and the configuration's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny", help="preset or TOML file")
    parser.add_argument("--as-it-is", action="store_true", help="keep the configuration's experts")
    parser.add_argument("--only", nargs="+", default=[], help="names of the cures to compare")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every cure")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--plot", type=Path, help="write a PNG of the shares over time")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
