"""`moebius resume`: continue a run from its newest checkpoint, or from an older one."""

import sys
from argparse import ArgumentParser, Namespace

from moebius.cli.command import RUN, Command
from moebius.cli.output import is_terminal, say
from moebius.config.resuming import CHANGEABLE


def run(options: Namespace) -> None:
    """Continue the run and train it to its end."""
    from moebius.config.files import override
    from moebius.config.flags import parse_flags
    from moebius.config.resuming import resumed_config
    from moebius.parallel.process import Process
    from moebius.train.run_directory import RunDirectory
    from moebius.train.trained_settings import last_trained

    process = Process.from_environment()
    with process.first_speaks():
        directory = RunDirectory.open(options.run)
        config = override(directory.config(), parse_flags(options.settings))
        record = directory.record(_ignore)
        latest = last_trained(directory, record, _ignore, options.step)
        resumed_config(latest, config)  # refuses a change before anything slow begins
        from moebius.cli.report import reported
        from moebius.cli.training import finished, train_to_end
        from moebius.parallel.group import joined
        from moebius.train.session import resume

        if record and (line := finished(directory, record, config, options.step)):
            if process.writes:
                say(line)
            return
    with joined(process, config.parallel.timeout) as peers, peers.announced():
        progress = is_terminal(sys.stderr)
        session = resume(config, directory, say, progress, peers, options.step)
        with reported(session), peers.announced():
            train_to_end(session)


def _ignore(line: str) -> None:
    """Drop a line that resuming the run prints again."""


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help=(
            "continue from the checkpoint of step N; newer checkpoints, metrics and events are "
            "moved to a folder aside-... in the run's directory (default: the newest checkpoint)"
        ),
    )


COMMAND = Command(
    name="resume",
    usage="RUN [--step N] [--section.key value ...]",
    summary="continue a run from its newest checkpoint",
    description=(
        "Continue a run from its newest intact checkpoint, exactly where it stopped. The settings "
        "below may change. A change is announced, recorded in the run's config.toml and "
        "events.jsonl, and lasts for later resumes. Everything else stays as it is: the model, "
        "the text and its order. data.source and data.tokenizer may only lead to the same text at "
        "another place."
    ),
    examples=(
        "moebius resume runs/my-run",
        "moebius resume runs/my-run --train.steps 40000  # train for longer",
        "moebius resume runs/my-run --step 8000          # go back to step 8000",
    ),
    arguments=(RUN,),
    settings=CHANGEABLE,
    add_options=_add_options,
    run=run,
)
