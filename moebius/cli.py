"""The command line: one function per command, thin. Torch is imported by the command that needs it."""

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from moebius.errors import ConfigError, MoebiusError, StorageError

if TYPE_CHECKING:
    import torch

    from moebius.train.loop import Session
    from moebius.train.run_directory import RunDirectory


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; exit with 0 or with the error's code after one line on stderr. `--debug` shows the traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model may write what this terminal cannot show
    try:
        _run([argument for argument in arguments if argument != "--debug"])
    except (MoebiusError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        code, message = _explain(error)
        print(f"moebius: {message}", file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def train(config_source: str, flags: list[str]) -> None:
    """Pretrain a model: `moebius train [CONFIG] [--section.key value ...]`."""
    from moebius.settings import read_config

    config = read_config(config_source, flags)
    from moebius.train.session import start

    _train_to_end(start(config, config_source, say=print, progress=sys.stderr.isatty()))


def resume(run_path: str, flags: list[str]) -> None:
    """Go on with a run where it stopped: `moebius resume RUN [--train.steps N ...]`."""
    from moebius.settings import override, parse_flags
    from moebius.train.run_directory import RunDirectory

    run = RunDirectory.open(run_path)
    values = parse_flags(flags)
    for section in values.keys() - {"train", "parallel", "observe"}:
        raise ConfigError(
            f"--{section}.{next(iter(values[section]))}: a resumed run keeps its {section}; start a new one to change it"
        )
    from moebius.train.session import resume as resume_session

    _train_to_end(resume_session(override(run.config(), values), run, say=print, progress=sys.stderr.isatty()))


def data(config_source: str, flags: list[str]) -> None:
    """Prepare the tokenizer and the token shards of a configuration, ahead of training."""
    from moebius.settings import read_config

    config = read_config(config_source, flags)
    from moebius.data import prepare

    corpus = prepare(config.data, config.model.vocab_size, report=print, progress=sys.stderr.isatty())
    print(f"{corpus.summary()}\n{corpus.folder}")


def generate(run_path: str, prompt: str, max_tokens: int, temperature: float, seed: int, device_name: str) -> None:
    """Continue a prompt with a run's newest checkpoint."""
    _check_sampling(prompt, temperature, seed)
    from moebius.train.run_directory import RunDirectory

    run = RunDirectory.open(run_path)
    from moebius.train.session import choose_device

    device = choose_device(replace(run.config().train, device=device_name).device)
    texts = _continued(run, device, prompt, max_tokens, temperature, seed)
    print(prompt, end="", flush=True)
    for text in texts:
        print(text, end="", flush=True)
    print()


def _check_sampling(prompt: str, temperature: float, seed: int) -> None:
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"--temperature {temperature}: a finite number, at least 0, is wanted")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: from 0 to 2**63 - 1")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # how Python hands over what is not UTF-8
        raise ConfigError(f"--prompt {prompt!r}: not UTF-8")


def _train_to_end(session: "Session") -> None:
    from moebius.observe.terminal import Terminal
    from moebius.train.loop import train as train_session

    config, run = session.config, session.run
    terminal = Terminal(config.train.steps, session.state.step, config.observe.progress)
    evaluation = train_session(session, terminal)
    print(
        f"\nvalidation loss {evaluation.loss:.4f} nats per token, {evaluation.bits_per_byte:.4f} bits per byte "
        f"({evaluation.tokens:,} held-out tokens)"
    )
    prompt = "def " if config.data.source == "python-stdlib" else ""
    sample = prompt + "".join(_continued(run, session.device, prompt, max_tokens=120))
    print("\na sample:\n" + "\n".join("    " + line for line in sample.splitlines()))
    print(f"\nrun directory: {run.root}\nmore text:     moebius generate {run.root} --prompt 'def '")


def _continued(
    run: "RunDirectory", device: "torch.device", prompt: str, max_tokens: int, temperature: float = 0.8, seed: int = 0
) -> Iterator[str]:
    from moebius.infer.generate import generate as generate_text
    from moebius.infer.generate import load_trained
    from moebius.train.step import matmul_dtype

    train = run.config().train
    model = load_trained(run, device, report=lambda line: print(f"moebius: {line}", file=sys.stderr))
    dtype = matmul_dtype(train, device)
    return generate_text(model, run.tokenizer(), prompt, max_tokens, train.seq_len, temperature, seed, dtype)


def _run(arguments: list[str]) -> None:
    parser = _parser()
    if arguments[:1] in (["train"], ["data"]) and {"-h", "--help"} & set(arguments):
        return _configuration_help(arguments[0], parser)
    options, flags = parser.parse_known_args(arguments)
    values = {name: value for name, value in vars(options).items() if name not in ("command", "function")}
    if "config_source" in values:
        # argparse leaves `--section.key value` alone and may take the value for CONFIG
        values["config_source"], flags = _split_config(arguments[1:])
    if options.function is resume and arguments[1] != options.run_path:
        raise ConfigError("RUN stands before the settings: `moebius resume RUN [--section.key value ...]`")
    if options.function in (train, resume, data):
        values["flags"] = flags
    elif flags:
        raise ConfigError(f"{flags[0]!r}: not understood; `moebius {options.command} --help` lists what is")
    options.function(**values)


def _split_config(arguments: list[str]) -> tuple[str, list[str]]:
    """CONFIG stands first if it stands at all; `tiny` is meant without one."""
    if arguments and not arguments[0].startswith("--"):
        return arguments[0], arguments[1:]
    return "tiny", arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="moebius", description="Pretrain mixture-of-experts language models and see where every FLOP goes.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, function: Callable[..., None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    for name, function, summary in (
        ("train", train, "pretrain a model"),
        ("data", data, "prepare tokenizer and token shards without training"),
    ):
        command(name, function, summary).add_argument(
            "config_source", metavar="CONFIG", nargs="?", help="a preset or a TOML file; default: tiny"
        )
    resumed = command("resume", resume, "go on with a run where it stopped; --train.*, --parallel.* and --observe.* may change")
    resumed.add_argument("run_path", metavar="RUN", help="the run's directory")
    generated = command("generate", generate, "continue a prompt with a trained model")
    generated.add_argument("run_path", metavar="RUN", help="the run's directory")
    generated.add_argument("--prompt", default="", help="text to continue (default: none)")
    generated.add_argument("--max-tokens", type=int, default=200, help="tokens to write at most (default: %(default)s)")
    generated.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: %(default)s)")
    generated.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    generated.add_argument("--device", dest="device_name", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.epilog = "Every command takes --help, and --debug to show a traceback."
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and carries the project's exit code."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` shows what is understood")


def _configuration_help(command: str, parser: argparse.ArgumentParser) -> None:
    """Every setting with its type, default and meaning, from the dataclasses."""
    import tyro

    from moebius.config import Config
    from moebius.presets import PRESETS

    print(f"usage: moebius {command} [CONFIG] [--section.key value ...]\n")
    print("CONFIG is a TOML file or a preset (default: tiny; the values below are those without any):")
    for name, function in PRESETS.items():
        print(f"  {name:<11} {' '.join((function.__doc__ or '').split())}")
    print()
    options = tyro.extras.get_parser(Config, default=Config(), config=(tyro.conf.FlagConversionOff,), use_underscores=True)
    _usage, _description, settings = options.format_help().split("\n\n", 2)
    print(settings)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, MoebiusError):
        return error.exit_code, " ".join(str(error).split())
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return StorageError.exit_code, f"{place}{error.strerror or error}"
    return 130, "interrupted"


if __name__ == "__main__":
    main()
