"""Generate text from the newest checkpoint of a run, and make it safe for a terminal."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from moebius.train.run_directory import RunDirectory

CONTROL_CHARACTERS = re.compile(r"[^\n\t -~\xa0-\U0010ffff]")


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
    skipped, a line is printed on stderr. Raises CheckpointError if no checkpoint is intact.
    """
    from moebius.hardware.precision import matmul_dtype
    from moebius.infer.generate import generate, load_trained

    train = directory.config().train
    model = load_trained(
        directory, device, report=lambda line: print(f"moebius: {line}", file=sys.stderr)
    )
    return generate(
        model,
        directory.tokenizer(),
        prompt,
        max_tokens,
        train.seq_len,
        temperature,
        seed,
        matmul_dtype(train, device),
    )


def printable(text: str) -> str:
    """Return the text with control characters escaped, except for new lines and tabs.

    A corpus may contain terminal sequences, and a model may have learned them.
    """
    return CONTROL_CHARACTERS.sub(
        lambda match: match.group().encode("unicode_escape").decode(), text
    )
