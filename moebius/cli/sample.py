"""Generate text from the newest checkpoint of a run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moebius.config.printable import complain

if TYPE_CHECKING:
    import torch

    from moebius.train.run_directory import RunDirectory


def continuation(
    directory: "RunDirectory",
    device: "torch.device",
    prompt: str,
    max_tokens: int,
) -> Iterator[str]:
    """Return an iterator over the pieces of text that continue the prompt.

    The model is loaded by this call, before the first piece. For each damaged checkpoint that is
    skipped, a line is printed on stderr. Raises CheckpointError if no checkpoint is intact, and
    DataError if the run's tokenizer.json is missing or not the one that it was trained with.
    """
    from moebius.infer.language_model import load_run

    model = load_run(directory, device, report=complain)
    return model.stream(prompt, max_tokens=max_tokens)
