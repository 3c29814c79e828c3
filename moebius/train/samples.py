"""Record the text that a run's model generates as it learns, in samples.jsonl."""

import json

from moebius.errors import StorageError
from moebius.observe.line_file import cut
from moebius.train.run_directory import RunDirectory

SAMPLES = "samples.jsonl"


def record_sample(run: RunDirectory, step: int, prompt: str, text: str) -> None:
    """Append a text that the model of `step` generated, with its prompt. Raises StorageError.

    Samples of that step and of later ones, which the run has trained again, are removed.
    """
    path = run.root / SAMPLES
    try:
        cut(path, step - 1, lambda _: None)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None
