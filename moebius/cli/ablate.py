"""`moebius ablate`: compare variants of a configuration."""

import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path

from moebius.cli.command import CONFIG, SECTIONS, Command
from moebius.cli.output import check_file
from moebius.config.printable import printable
from moebius.errors import ConfigError, Interrupted, MoebiusError


def run(options: Namespace) -> None:
    """Measure the variants, train them if asked to, and print a comparison."""
    from moebius.config.files import read_config
    from moebius.parallel.process import Process

    Process.single("`moebius ablate`")
    config = read_config(options.config, options.settings)
    check_file("--html", options.html, ".html")
    from moebius.ablate.ablation import AblateOptions
    from moebius.ablate.json_text import as_json
    from moebius.ablate.run import ablate
    from moebius.ablate.tables import lines
    from moebius.ablate.variants import variants

    ablate_options = AblateOptions(
        seconds=options.seconds,
        rounds=options.rounds,
        learn=options.learn,
        learn_seconds=options.learn_seconds,
        seeds=options.seeds,
    )
    compared = variants(config, options.over, options.twin, options.iso_active)
    for variant in compared:
        if variant.problem:
            raise ConfigError(f"{variant.name}: {variant.problem}")
    ablation = ablate(compared, ablate_options, _say_progress)
    if ablation.stopped_by and not ablation.is_measured:
        raise Interrupted(ablation.stopped(), ablation.stopped_by)
    print(as_json(ablation) if options.as_json else printable("\n".join(lines(ablation))))
    if options.html:
        from moebius.ablate.page import page

        Path(options.html).write_text(page(ablation), "utf-8")
    if ablation.stopped_by:
        sys.stdout.flush()
        raise Interrupted(ablation.stopped(), ablation.stopped_by)
    if not ablation.sound:
        raise MoebiusError("no variant could be run; the table says why")


def _say_progress(line: str) -> None:
    """Print a line of progress on stderr, whether that is a terminal, a pipe or a file."""
    if sys.stderr is not None:  # print would take stdout instead
        with suppress(OSError):
            print(printable(line), file=sys.stderr, flush=True)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="FIELD=V1,V2",
        help="values of a field of model, data, train or parallel; with several --over, all "
        "combinations. A value that contains commas needs brackets: "
        "model.num_experts=4,[2,4,4,8]",
    )
    parser.add_argument(
        "--twin", action="store_true", help="also the dense model with the same active parameters"
    )
    parser.add_argument(
        "--iso-active",
        action="store_true",
        help="resize the experts so that every variant has the same active parameters",
    )
    parser.add_argument(
        "--learn",
        type=int,
        default=0,
        metavar="STEPS",
        help="also train each variant for STEPS steps, with evaluations on the way",
    )
    parser.add_argument(
        "--learn-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="train each variant for S seconds instead",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="number of seeds to train each variant with (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to measure speed for, all variants together (default: %(default)g)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        metavar="N",
        help="times that each variant is measured (default: 3 to 8, as many as fit)",
    )
    page = "also write a page with verdict and learning curves"
    parser.add_argument("--html", default="", metavar="FILE.html", help=page)
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print JSON instead of the tables"
    )


COMMAND = Command(
    name="ablate",
    usage="[CONFIG] [--over section.key=V1,V2 ...] [--section.key value ...] [options]",
    summary="compare variants of a configuration: speed, memory, what they learn",
    description=(
        "Compare variants of a configuration: their speed, their memory and, with --learn, their "
        "loss. The variants take turns, so that they all see the same state of the machine."
    ),
    examples=(
        "moebius ablate tiny --over model.router_top_k=1,2,4",
        "moebius ablate --over model.base_expansion=0,1 --twin --iso-active --learn 200",
    ),
    arguments=(CONFIG,),
    settings=SECTIONS,
    add_options=_add_options,
    run=run,
)
