"""Text by the reference decoder, which takes any function of tokens for a model."""

from collections.abc import Iterator
from typing import Any

import torch

from moebius.data import Tokenizer
from moebius.infer.decoder import Recomputing
from moebius.infer.generate import Request, write
from moebius.infer.sampling import Sampling


def generate(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    seed: int = 0,
    **options: Any,
) -> Iterator[str]:
    """Yield what `moebius.infer.generate.generate` yields, by reading all text for every token."""
    sampling = Sampling(temperature=temperature)
    decoder = Recomputing(model, torch.device("cpu"), tokenizer.size, context, sampling)
    request = Request(max_tokens=max_tokens, sampling=sampling, seed=seed, **options)
    for piece in write(decoder, tokenizer, [tokenizer.encode(prompt)], request):
        if piece.text:
            yield piece.text
