"""`moebius doctor`: what this machine has, what will be used, and whether training works."""

from argparse import ArgumentParser, Namespace

from moebius.cli.command import SECTIONS, Command
from moebius.config.printable import printable
from moebius.errors import Interrupted, NumericError


def run(options: Namespace) -> None:
    """Print the diagnosis line by line. Raises NumericError if a check fails."""
    from moebius.config import Config
    from moebius.config.files import override
    from moebius.config.flags import parse_flags
    from moebius.parallel.process import Process

    Process.single("`moebius doctor`")
    config = override(Config(), parse_flags(options.settings))
    from moebius.doctor.examine import as_json, examine
    from moebius.hardware.device import choose_device
    from moebius.train.interruption import interruptible, signal_of

    def say(line: str) -> None:
        if not options.as_json:
            print(printable(line), flush=True)

    with interruptible():
        try:
            diagnosis = examine(config, choose_device(config.train.device), say)
        except KeyboardInterrupt as interrupt:  # the self-test would name its own checks
            number = signal_of(interrupt)
            raise Interrupted(
                f"doctor was stopped by {number.name} before the self-test; every check is "
                "incomplete",
                number,
            ) from None
    if options.as_json:
        print(as_json(diagnosis))
    if diagnosis.failed:
        raise NumericError(diagnosis.verdict())
    say(diagnosis.verdict())


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print JSON instead of lines"
    )


COMMAND = Command(
    name="doctor",
    usage="[--section.key value ...] [--json]",
    summary="check this machine: what it has, and whether training works",
    description=(
        "Show what this machine has, what a run would use of it and how fast that is; warn of "
        "what would spoil a run; and test that training works. This takes about a minute, and "
        "several where the processor is slow or busy; each result is shown once it is there."
    ),
    examples=("moebius doctor", "moebius doctor --train.device cpu --json"),
    settings=SECTIONS,
    add_options=_add_options,
    run=run,
)
