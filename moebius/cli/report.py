"""`moebius report`: one HTML page about a run, or about several runs that are compared."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moebius.cli.command import Argument, Command
from moebius.cli.output import check_file, say, softly
from moebius.errors import MoebiusError

if TYPE_CHECKING:
    from moebius.train.session import Session

RUNS = Argument(
    "RUN",
    "the directory of a run, such as runs/my-run; several runs are compared",
    mistaken_flags=("--run", "--run-dir"),
    is_repeated=True,
)


def run(options: Namespace) -> None:
    """Write the report, and print the verdict on each run and the path of the report."""
    check_file("--out", options.out, ".html")
    target = Path(options.out) if options.out else None
    from moebius.report.report import write_report

    folders = [Path(folder) for folder in dict.fromkeys(options.run)]
    path, verdicts = write_report(folders, target)
    for folder, verdict in zip(folders, verdicts, strict=True):
        say(f"{folder}: {verdict}")
    say(f"report: {path}")


@contextmanager
def reported(session: "Session") -> Iterator[None]:
    """Record the machine that a run is trained on and, however the run ends, write its report.

    The path of the report is printed last. A report that cannot be written is a line on stderr,
    and never changes how the run ends.
    """
    if not session.process.writes:
        yield
        return
    from moebius.train.environment import record_environment

    step = session.state.step
    with softly("the machine is not recorded"):
        record_environment(session.run, step, session.device, session.process.world_size)
    ending = ""
    try:
        yield
    except MoebiusError as error:
        ending = str(error)
        raise
    finally:
        with softly("no report", known=ending):
            session.check_owned()  # never writes into what is there instead of the run
            from moebius.report.report import write_report

            path, (verdict,) = write_report([session.run.root])
            say(f"\nverdict:       {verdict}\nreport:        {path}")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE.html",
        help="write the report there (default: RUN/report.html, or report.html for several runs)",
    )


COMMAND = Command(
    name="report",
    usage="RUN [RUN ...] [--out FILE.html]",
    summary="write a page about a run, or compare several: is it healthy, and why",
    description=(
        "Write one HTML page that needs no network and no other file: the verdict on the run in a "
        "sentence; loss, speed and balance by steps, tokens, time and FLOPs; the share of each "
        "expert as a heat map; alarms and actions; samples, configuration and text. The curves of "
        "several runs are drawn together, below the settings in which they differ. What is "
        "missing or damaged is named, and everything else is shown."
    ),
    examples=(
        "moebius report runs/my-run",
        "moebius report runs/mixture runs/dense --out compared.html",
    ),
    arguments=(RUNS,),
    add_options=_add_options,
    run=run,
)
