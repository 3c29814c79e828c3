"""`moebius evaluate`: measure a trained model on held-out text and on tasks."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from moebius.cli.command import Argument, Command
from moebius.cli.devices import add_device, device_named
from moebius.cli.output import say
from moebius.config.printable import complain
from moebius.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from moebius.infer.evaluable import Evaluable
    from moebius.infer.tasks import Tasks


def run(options: Namespace) -> None:
    """Evaluate the model, print the results as tables or as JSON, and write them into files."""
    names = _check(options)
    tasks = _tasks(names)
    from moebius.hardware.threads import use_threads
    from moebius.infer.evaluable import evaluable
    from moebius.infer.evaluation_file import to_json

    model = evaluable(options.run, options.step, complain)
    train = model.config.train
    device = device_named(options.device, train)
    use_threads(train.threads)
    num_tokens = train.eval_tokens if options.tokens is None else options.tokens
    has_own_text = model.run is not None
    results: dict[str, Any] = {}
    if not options.json:
        step = "" if model.step is None else f", step {model.step:,}"
        say(f"{model.folder}{step}, sequences of {train.seq_len:,} tokens")
    if num_tokens and (has_own_text or options.source or not tasks):
        results |= _on_text(model, num_tokens, device, options)
    if tasks:
        results |= _on_tasks(model, tasks, device, options)
    if options.json:
        print(to_json(results))


def _check(options: Namespace) -> list[str]:
    """Return the names of the tasks. Raises ConfigError for a value that is not allowed."""
    names = [name.strip() for name in options.tasks.split(",")] if options.tasks else []
    if "" in names:
        raise ConfigError(f"--tasks {options.tasks!r}: a name is empty (commas separate tasks)")
    if options.tokens is not None and options.tokens < 0:
        raise ConfigError(f"--tokens {options.tokens}: must be at least 0")
    if options.tokens == 0 and not names:
        raise ConfigError("--tokens 0: leaves nothing to evaluate without --tasks")
    if options.tokens == 0 and options.source:
        raise ConfigError("--tokens 0: leaves out the text that --source names")
    for flag, value, fewest in (
        ("--limit", options.limit, 1),
        ("--num-fewshot", options.num_fewshot, 0),
    ):
        if value is not None and value < fewest:
            raise ConfigError(f"{flag} {value}: must be at least {fewest}")
        if value is not None and not names:
            raise ConfigError(f"{flag} {value}: is about tasks; name some with --tasks")
    return names


def _tasks(names: list[str]) -> "Tasks | None":
    """Return the tasks, or None without any. Raises ConfigError, before any model is loaded."""
    if not names:
        return None
    from moebius.infer.tasks import Tasks, check_installed

    check_installed()
    return Tasks(names)


def _on_text(
    model: "Evaluable", num_tokens: int, device: "torch.device", options: Namespace
) -> dict[str, Any]:
    """Evaluate the model on text, print the tables, and return what is written into the file."""
    from moebius.hardware.precision import dtype_name, matmul_dtype
    from moebius.infer.evaluation import held_out
    from moebius.infer.evaluation_file import check_writable, text_file, text_values, write
    from moebius.infer.evaluation_table import text_table

    if options.source:
        corpus, own = model.other_text(options.source, complain)
    else:
        corpus, own = model.held_out_text(complain), {}
    path = text_file(model, options.source)
    check_writable(path)
    config = model.settings(num_tokens)
    result = held_out(model.model(device), corpus, config, device)
    dtype = dtype_name(matmul_dtype(config.train, device))
    values = text_values(model, result, options.source, own, dtype)
    write(path, values)
    if not options.json:
        for line in ["", *text_table(result), "", f"written to {path}"]:
            say(line)
    return values


def _on_tasks(
    model: "Evaluable", tasks: "Tasks", device: "torch.device", options: Namespace
) -> dict[str, Any]:
    """Evaluate the model on tasks, print the table, and return what is written into the file."""
    from moebius.hardware.precision import dtype_name
    from moebius.infer.evaluation_file import check_writable, tasks_file, tasks_values, write
    from moebius.infer.evaluation_table import tasks_table

    path = tasks_file(model)
    check_writable(path)
    language_model = model.language_model(device)
    results = tasks.run(language_model, options.limit, options.num_fewshot)
    values = tasks_values(model, results, dtype_name(language_model.dtype))
    write(path, values)
    if not options.json:
        for line in ["", *tasks_table(results), "", f"written to {path}"]:
            say(line)
    return values


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="size of the sample of text (default: train.eval_tokens; 0: tasks only)",
    )
    parser.add_argument(
        "--source",
        default="",
        metavar="TEXT",
        help="evaluate on another text, a data.source, all of which counts as held out",
    )
    parser.add_argument(
        "--tasks",
        default="",
        metavar="A,B",
        help="tasks of lm-evaluation-harness: names, patterns or .yaml files",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="largest number of questions of each task"
    )
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="number of examples before each question"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_device(parser)


COMMAND = Command(
    name="evaluate",
    usage="RUN [--source TEXT] [--tasks A,B] [options]",
    summary="measure a trained model on held-out text and on tasks",
    description=(
        "Measure the model of a run, or of an exported folder: the loss on held-out text, its "
        "perplexity and bits per byte for each source, with confidence intervals, and which "
        "experts take which tokens. The numbers are those of training (val_loss) on the same "
        "tokens. With --tasks, also the tasks of lm-evaluation-harness. Results are also written "
        "into the folder evaluations in the run's directory."
    ),
    examples=(
        "moebius evaluate runs/my-run --tokens 10000000",
        "moebius evaluate runs/my-run --source 'other/*.jsonl'",
        "moebius evaluate exported --tasks hellaswag,arc_easy",
    ),
    arguments=(
        Argument(
            "RUN",
            "the directory of a run, or the folder of an exported model",
            mistaken_flags=("--run", "--run-dir"),
        ),
    ),
    add_options=_add_options,
    run=run,
)
