"""`moebius watch`: look at runs while other processes train them."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from moebius.cli.command import Argument, Command
from moebius.cli.output import say
from moebius.cli.stopping import Stopped
from moebius.errors import ConfigError

RUNS = Argument(
    "RUN",
    "the directory of a run, such as runs/my-run; several runs are side by side",
    mistaken_flags=("--run", "--run-dir"),
    is_repeated=True,
)


def run(options: Namespace) -> None:
    """Show the runs until Ctrl-C, which is how this command ends."""
    if options.port is not None and not options.web:
        raise ConfigError("--port is for --web: `moebius watch RUN --web --port N`")
    if options.once and options.web:
        raise ConfigError("--once is for the terminal; `moebius report` writes the page once")
    folders = [Path(folder) for folder in dict.fromkeys(options.run)]
    try:
        if options.web:
            from moebius.watch.page import serve

            serve(folders, options.port, say)
        else:
            from moebius.watch.terminal import watch
            from moebius.watch.watched import WatchedRun

            watch([WatchedRun(folder) for folder in folders], options.once, say)
    except Stopped:
        raise
    except KeyboardInterrupt:
        say("")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--once", action="store_true", help="show what is known now, and do not wait for more"
    )
    parser.add_argument(
        "--web",
        action="store_true",
        help="serve the report to a browser on this machine, and renew it as the training goes on",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="with --web: the port (default: 8642, or another one if that is in use)",
    )


COMMAND = Command(
    name="watch",
    usage="RUN [RUN ...] [--once] [--web [--port N]]",
    summary="look at runs while they are trained, in the terminal or in a browser",
    description=(
        "Show what `moebius train` shows on a terminal, of runs that other processes train: "
        "progress, the curve of the loss, the share of each expert, and the latest events. Runs "
        "that are over, or whose process has died, are shown, too. Several runs are side by side. "
        "Without a terminal, a line is printed for each logged step and event, until no run is "
        "trained any more. Ctrl-C ends it. The runs are only read."
    ),
    examples=(
        "moebius watch runs/my-run",
        "moebius watch runs/mixture runs/dense",
        "moebius watch runs/my-run --web        # its report, at http://127.0.0.1:8642/",
    ),
    arguments=(RUNS,),
    add_options=_add_options,
    run=run,
)
