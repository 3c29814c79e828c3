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
    temperature: float = 0.8,
    seed: int = 0,
) -> Iterator[str]:
    """Return an iterator over the pieces of text that continue the prompt.

    The model is loaded by this call, before the first piece. For each damaged checkpoint that is
    skipped, a line is printed on stderr. Raises CheckpointError if no checkpoint is intact, and
    DataError if the run's tokenizer.json is missing or not the one that it was trained with.
    """
    from moebius.hardware.precision import matmul_dtype
    from moebius.infer.generate import generate, load_trained

    train = directory.config().train
    model, tokenizer = load_trained(directory, device, report=complain)
    return generate(
        model,
        tokenizer,
        prompt,
        max_tokens,
        train.seq_len,
        temperature,
        seed,
        matmul_dtype(train, device),
    )
