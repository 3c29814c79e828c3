"""The command line: one function per command, thin. Torch is imported by the command that needs it."""

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from moebius.errors import ConfigError, MoebiusError, NumericError, StorageError

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
    except (MoebiusError, OSError, KeyboardInterrupt, RuntimeError) as error:
        if debug or (isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"):  # torch's
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


def profile(config_source: str, flags: list[str], seconds: float, as_json: bool, chart: str, html: str, verify: int) -> None:
    """Show where a training step's time goes, and what is wrong with it."""
    from moebius.settings import read_config

    config = read_config(config_source, flags)
    _check_profile(seconds, chart, html, verify)
    from moebius.profile import report
    from moebius.profile.findings import findings
    from moebius.profile.profile import profile as profile_step
    from moebius.profile.profile import verify as verify_finding
    from moebius.profile.wording import describe
    from moebius.train.session import choose_device

    found, steps = profile_step(config, choose_device(config.train.device), seconds)
    wrong = findings(found, steps)
    if chart:
        report.chart(found, Path(chart))
    if not as_json:
        print("\n".join([*report.table(found), "", *describe(found, wrong)]), flush=True)
    verified = []
    for finding in wrong[:verify]:
        verified.append(verify_finding(steps, finding))
        if not as_json:
            print(verified[-1], flush=True)
    if as_json:
        print(report.as_json(found, wrong, verified))
    if html:
        from moebius.profile.page import page

        Path(html).write_text(page(found, wrong, verified), "utf-8")


def _check_profile(seconds: float, chart: str, html: str, verify: int) -> None:
    """Before anything is measured."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: a number greater than 0 is wanted")
    if verify < 0:
        raise ConfigError(f"--verify {verify}: how many findings' changes to make, at least 0")
    for flag, file, suffix in (("chart", chart, ".png"), ("html", html, ".html")):
        if file and Path(file).suffix != suffix:
            raise ConfigError(f"--{flag} {file}: a file that ends with {suffix} is wanted")
        if file and not Path(file).absolute().parent.is_dir():
            raise StorageError(f"--{flag} {file}: {Path(file).absolute().parent} is not a directory")


def plan(config_source: str, flags: list[str], gpus: int, gpu: str, imbalance: float, as_json: bool) -> None:
    """Show what a run would need on given GPUs and how long a step would take, without making a model."""
    from moebius.settings import read_config

    config = read_config(config_source, flags)
    from moebius.profile.devices import device_named
    from moebius.profile.plan import recommend as planning

    found = planning.plan(config, device_named(gpu), gpus, imbalance)
    print(planning.as_json(found) if as_json else "\n".join(planning.lines(found)))


def ablate(
    config_source: str, flags: list[str], over: list[str], twin: bool, iso_active: bool, as_json: bool, **plan: Any
) -> None:
    """Compare variants of a configuration: speed, memory and, with --learn, what they learn."""
    from moebius.settings import read_config

    config = read_config(config_source, flags)
    from moebius.profile.ablate import report
    from moebius.profile.ablate.run import Plan
    from moebius.profile.ablate.run import ablate as ablate_variants
    from moebius.profile.ablate.variants import variants

    def say(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    found = ablate_variants(variants(config, over, twin, iso_active), Plan(**plan), say)
    print(report.as_json(found) if as_json else "\n".join(report.lines(found)))
    if not found.sound:
        raise MoebiusError("no variant could be run; the table says why")


def doctor(flags: list[str], as_json: bool) -> None:
    """Show what this machine has and will use, and test that it trains."""
    from moebius.config import Config
    from moebius.settings import override, parse_flags

    config = override(Config(), parse_flags(flags))
    from moebius.profile.doctor import examine as examination
    from moebius.train.session import choose_device

    def say(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    diagnosis = examination.examine(config, choose_device(config.train.device), say)
    if as_json:
        print(examination.as_json(diagnosis))
    if diagnosis.failed:
        raise NumericError(diagnosis.verdict())
    say(diagnosis.verdict())


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
    if options.function in (profile, ablate, plan):
        values["config_source"], flags = _split_config(flags)
    if options.function in (train, resume, data, profile, ablate, plan, doctor):
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
    profiled = command("profile", profile, "show where a training step's time goes, and what is wrong with it")
    profiled.usage = "moebius profile [CONFIG] [--section.key value ...] [options]"
    profiled.add_argument("--seconds", type=float, default=15.0, help="time to measure for (default: %(default)s)")
    profiled.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of the table")
    profiled.add_argument("--chart", default="", metavar="PNG", help="also draw the components")
    profiled.add_argument("--html", default="", metavar="HTML", help="also write a page: the chart, the table, what is wrong")
    profiled.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="make the first N changes (1) and measure again",
    )
    _add_ablate(command("ablate", ablate, "compare variants of a configuration: speed, memory, what they learn"))
    examined = command("doctor", doctor, "show what this machine has and will use, and test that it trains: a minute")
    examined.usage = "moebius doctor [--section.key value ...] [--json]"
    examined.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of lines")
    planned = command("plan", plan, "what a run would need on given GPUs, and how long a step would take: nothing is run")
    planned.usage = "moebius plan [CONFIG] [--section.key value ...] [options]"
    planned.add_argument("--gpus", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    planned.add_argument("--gpu", default="here", help="here (default), b200, h200, h100, a100, l40s, rtx-4090 and others")
    planned.add_argument(
        "--imbalance", type=float, default=1.0, metavar="F", help="the busiest expert's load over an even one (default: 1)"
    )
    planned.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of the text")
    generated = command("generate", generate, "continue a prompt with a trained model")
    generated.add_argument("run_path", metavar="RUN", help="the run's directory")
    generated.add_argument("--prompt", default="", help="text to continue (default: none)")
    generated.add_argument("--max-tokens", type=int, default=200, help="tokens to write at most (default: %(default)s)")
    generated.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: %(default)s)")
    generated.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    generated.add_argument("--device", dest="device_name", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.epilog = "Every command takes --help, and --debug to show a traceback."
    return parser


def _add_ablate(ablated: argparse.ArgumentParser) -> None:
    ablated.usage = "moebius ablate [CONFIG] --over section.key=V1,V2 [--section.key value ...] [options]"
    ablated.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="FIELD=V1,V2",
        help="values of a field of model, data, train or parallel; several --over: all combinations. A value that holds "
        "commas stands in brackets: model.num_experts=4,[2,4,4,8]",
    )
    ablated.add_argument("--twin", action="store_true", help="also the dense model with the same active parameters")
    ablated.add_argument("--iso-active", action="store_true", help="resize experts to the given active parameters")
    ablated.add_argument("--learn", type=int, default=0, metavar="STEPS", help="train each for STEPS and evaluate on the way")
    ablated.add_argument("--learn-seconds", type=float, default=0.0, metavar="S", help="train each for S seconds instead")
    ablated.add_argument("--seeds", type=int, default=1, help="to learn with (default: %(default)s)")
    ablated.add_argument("--seconds", type=float, default=30.0, help="to measure speed for, in all (default: %(default)s)")
    ablated.add_argument("--rounds", type=int, default=0, help="turns each variant has (default: 3 to 8, as many as fit)")
    ablated.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of the tables")


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
    if isinstance(error, RuntimeError):
        return ConfigError.exit_code, (
            "the GPU's memory is full; give a smaller --train.micro_batch_size, --parallel.loss_chunks 8 or "
            "--parallel.activation_checkpointing selective; `moebius plan` tells what fits"
        )
    return 130, "interrupted"


if __name__ == "__main__":
    main()
