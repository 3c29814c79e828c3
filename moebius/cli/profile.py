"""`moebius profile`: measure where a training step's time goes."""

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

from moebius.cli.command import CONFIG, SECTIONS, Command
from moebius.cli.output import check_file
from moebius.errors import ConfigError


def run(options: Namespace) -> None:
    """Measure a step, print its components and findings, and verify findings on request."""
    from moebius.config.files import read_config
    from moebius.parallel.process import Process

    Process.single("`moebius profile`")
    config = read_config(options.config, options.settings)
    _check(options)
    from moebius.hardware.device import choose_device
    from moebius.profile.chart import chart
    from moebius.profile.findings import findings
    from moebius.profile.json_text import as_json
    from moebius.profile.profile import profile
    from moebius.profile.table import table
    from moebius.profile.verify import verify
    from moebius.profile.wording import describe

    profiled, steps = profile(config, choose_device(config.train.device), options.seconds)
    problems = findings(profiled, steps)
    if options.chart:
        chart(profiled, Path(options.chart))
    if not options.as_json:
        print("\n".join([*table(profiled), "", *describe(profiled, problems)]), flush=True)
    verified = []
    for finding in problems[: options.verify]:
        verified.append(verify(profiled, steps, finding))
        if not options.as_json:
            print(verified[-1], flush=True)
    if options.verify and not problems and not options.as_json:
        print("verified   nothing, because there is no finding to verify")
    if options.as_json:
        print(as_json(profiled, problems, verified))
    if options.html:
        from moebius.profile.page import page

        Path(options.html).write_text(page(profiled, problems, verified), "utf-8")


def _check(options: Namespace) -> None:
    """Raise ConfigError or StorageError for a wrong option, before anything is measured."""
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds {options.seconds:g}: must be a number above 0")
    if options.verify < 0:
        raise ConfigError(
            f"--verify {options.verify}: the number of findings to verify must be at least 0"
        )
    check_file("--chart", options.chart, ".png")
    check_file("--html", options.html, ".html")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds to measure for (default: %(default)g)",
    )
    parser.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="make the changes that the first N findings propose and measure again "
        "(without N: the first)",
    )
    parser.add_argument(
        "--chart",
        default="",
        metavar="FILE.png",
        help="also write a chart of the components as a picture",
    )
    parser.add_argument(
        "--html",
        default="",
        metavar="FILE.html",
        help="also write a page with the chart, the table and the findings",
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print JSON instead of the table"
    )


COMMAND = Command(
    name="profile",
    usage="[CONFIG] [--section.key value ...] [options]",
    summary="measure where a training step's time goes and what slows it down",
    description=(
        "Measure where the time of a training step goes, compare each component with what the "
        "hardware could do, and say what slows the step down, with a change that should help."
    ),
    examples=(
        "moebius profile pr_moe --verify                   # also try the first change",
        "moebius profile standard --html profile.html",
    ),
    arguments=(CONFIG,),
    settings=SECTIONS,
    add_options=_add_options,
    run=run,
)
