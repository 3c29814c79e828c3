"""`moebius generate`: continue a prompt with a trained model."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moebius.cli.command import RUN, Command
from moebius.cli.continuations import print_texts
from moebius.cli.devices import add_device, device_named
from moebius.cli.prompts import is_utf8, read_prompts
from moebius.config.printable import complain
from moebius.errors import ConfigError

if TYPE_CHECKING:
    from moebius.infer.generate import Request


def run(options: Namespace) -> None:
    """Print each prompt and its continuation by one of the run's checkpoints."""
    if options.prompt and options.prompts:
        raise ConfigError("--prompt, --prompts: give one of them")
    _check_text("--prompt", options.prompt)
    for stop in options.stop:
        _check_text("--stop", stop)
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size {options.batch_size}: must be at least 1")
    request = _request(options)
    prompts = read_prompts(options.prompts) if options.prompts else [options.prompt]
    from moebius.train.run_directory import RunDirectory

    directory = RunDirectory.open(options.run)
    device = device_named(options.device, directory.config().train)
    from moebius.infer.language_model import load_run

    model = load_run(directory, device, report=complain, step=options.step)
    with _named_as_options():
        print_texts(
            model,
            prompts,
            request,
            num_at_once=options.batch_size,
            speculates=options.speculate,
            as_json=options.json,
            tells_speed=options.speed,
        )


def _request(options: Namespace) -> "Request":
    """Return what the options ask for. Raises ConfigError for a value that is not allowed."""
    from moebius.infer.generate import Request
    from moebius.infer.sampling import Sampling

    with _named_as_options():
        return Request(
            max_tokens=options.max_tokens,
            sampling=Sampling(
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                min_p=options.min_p,
            ),
            seed=options.seed,
            stop=tuple(options.stop),
            num=options.num,
        )


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Let an error that names an argument of Python, `top_p=2`, name the option: `--top-p 2`."""
    try:
        yield
    except ConfigError as error:
        name, separator, rest = str(error).partition("=")
        if separator and name.isidentifier():
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {rest}".replace(" True:", ":")) from None
        raise


def _check_text(option: str, text: str) -> None:
    """Raise ConfigError for a text that is not UTF-8."""
    if not is_utf8(text):
        raise ConfigError(f"{option} {text!r}: must be UTF-8")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="text to continue (default: none)"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="file with one prompt on each line, or JSON lines with a `prompt`; - is stdin",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=200,
        metavar="N",
        help="largest number of tokens to write (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="randomness; 0, or almost 0, always takes the likeliest token (default: %(default)s)",
    )
    _add_filters(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the sampling (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    parser.add_argument(
        "--num",
        type=int,
        default=1,
        metavar="N",
        help="number of texts for each prompt (default: %(default)s)",
    )
    _add_ways(parser)


def _add_filters(parser: ArgumentParser) -> None:
    """Add the options that leave out unlikely tokens."""
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K likeliest tokens; 0 means all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that have this probability together "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw from tokens at least this share as likely as the likeliest "
        "(default: %(default)s)",
    )


def _add_ways(parser: ArgumentParser) -> None:
    """Add the options about how and by what the texts are written."""
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="number of texts written at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)"
    )
    parser.add_argument(
        "--speculate",
        action="store_true",
        help="draft tokens with multi-token prediction, and verify them in one pass",
    )
    parser.add_argument(
        "--speed", action="store_true", help="print tokens per second on stderr at the end"
    )
    parser.add_argument(
        "--json", action="store_true", help="print each text as a JSON object on one line"
    )
    add_device(parser)


COMMAND = Command(
    name="generate",
    usage="RUN [options]",
    summary="continue a prompt with a trained model",
    description=(
        "Continue prompts with a checkpoint of a run. The same seed gives the same text. The "
        "model reads no more tokens at once than in training: of a longer text, it reads the "
        "last half to whole of that number."
    ),
    examples=(
        "moebius generate runs/my-run --prompt 'def fibonacci(' --max-tokens 100",
        "moebius generate runs/my-run --prompts prompts.txt --num 4 --json",
    ),
    arguments=(RUN,),
    add_options=_add_options,
    run=run,
)
