"""`moebius plan`: estimate what a run needs on given GPUs, without running anything."""

from argparse import ArgumentParser, Namespace

from moebius.cli.command import CONFIG, SECTIONS, Command


def run(options: Namespace) -> None:
    """Print the best layout, its memory and its step time, and the alternatives."""
    from moebius.config.files import read_config

    config = read_config(options.config, options.settings)
    from moebius.config.width import folded
    from moebius.hardware.devices import device_named
    from moebius.plan.recommend import plan
    from moebius.plan.wording import INDENT, as_json, lines

    device = device_named(options.gpu)
    planned = plan(config, device, options.gpus, options.imbalance)
    print(as_json(planned) if options.as_json else "\n".join(folded(lines(planned), INDENT)))


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="number of GPUs (default: %(default)s)"
    )
    parser.add_argument(
        "--gpu",
        default="here",
        metavar="NAME",
        help="kind of GPU: b200, h200, h100, a100, l40s, rtx-4090 and others, or its name in "
        "nvidia-smi, or here (the default) for this machine's",
    )
    parser.add_argument(
        "--imbalance",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="tokens of the busiest expert over tokens of an average one (default: 1)",
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print JSON instead of text"
    )


COMMAND = Command(
    name="plan",
    usage="[CONFIG] [--section.key value ...] [options]",
    summary="estimate memory and step time on GPUs that need not be there",
    description=(
        "Estimate how a run fits on given GPUs: the best layout, its memory, the time of a step, "
        "and the alternatives. No model is created, and the GPUs need not be there."
    ),
    examples=("moebius plan standard --gpus 64 --gpu h100 --model.num_experts 64",),
    arguments=(CONFIG,),
    settings=SECTIONS,
    add_options=_add_options,
    run=run,
)
