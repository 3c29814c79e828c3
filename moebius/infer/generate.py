"""Generate text from a model, one token at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from moebius.config import ParallelConfig
from moebius.data import Tokenizer
from moebius.errors import CheckpointError, NumericError
from moebius.hardware.backends import backends_for
from moebius.model.transformer import Transformer
from moebius.train import checkpoint, checkpoint_store
from moebius.train.resumption import own_tokenizer
from moebius.train.run_directory import RunDirectory
from moebius.train.state import check_model, load_model
from moebius.train.trained_settings import check_belongs

GREEDY_BELOW = 1e-6
"""Temperature below which the likeliest token is taken. Float32 logits of the usual size differ by
more than this, so that only equal ones would be left to draw from."""
UNIFORM_ABOVE = 1e30
"""Highest temperature that is used. All tokens are equally likely long before it."""


def load_trained(
    run: RunDirectory, device: torch.device, report: Callable[[str], None] = print
) -> tuple[Transformer, Tokenizer]:
    """Return the model of a run's newest intact checkpoint, in evaluation mode, and its tokenizer.

    `report` gets a line for each damaged checkpoint that is skipped. Raises CheckpointError
    if none is intact, and DataError if tokenizer.json is not the run's own any more.
    """
    config = run.config()
    record = run.record(report)
    tokenizer = own_tokenizer(config, run, record)
    # The model is not compiled, because a text grows with every token, and every length would be
    # compiled again.
    uncompiled = replace(config, parallel=ParallelConfig(compile="off"))
    model = Transformer(config.model, backends_for(uncompiled, device)).to(device)

    def load(folder: Path) -> None:
        tensors, values = checkpoint.load(folder)
        weights = tensors.get("model", {})
        check_model(model, weights, folder)
        check_belongs(folder, values, config, record.identity if record else "")
        load_model(model, weights)

    if checkpoint_store.load_newest(run.checkpoints, load, report) is None:
        raise CheckpointError(f"{run.checkpoints}: no checkpoint yet; train the run first")
    return model.eval(), tokenizer


@torch.no_grad()
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[str]:
    """Yield the text that follows `prompt`, piece by piece.

    It ends with the end-of-text token or after `max_tokens` tokens, without a character that is
    then unfinished. `context` is the length of the sequences that the model was trained on; the
    model does not see older tokens. A temperature of 0, or almost 0, takes the most likely token.
    `dtype` is that of the matrix products, as in training. The model reads all tokens again for
    every new one (there is no KV cache): this is for looking at a run, not for serving. Raises
    NumericError if the model's logits are not finite.
    """
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    prompt_ids = tokenizer.encode(prompt)
    text = _ContinuedText(tokenizer, prompt_ids)
    tokens = [tokenizer.end_of_text, *prompt_ids]
    for _ in range(max_tokens):
        window_1S = torch.tensor([tokens[-context:]], device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits_V = model(window_1S).logits_BSV[0, -1].float()
        logits_V[tokenizer.size :] = -torch.inf  # rows of a padded vocabulary stand for no token
        token = _sample(logits_V, temperature, generator)
        if token == tokenizer.end_of_text:
            yield from text.rest()
            return
        tokens.append(token)
        yield from text.add(token)
    yield from text.rest(is_cut=True)


def _sample(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return the id of a token drawn from the logits."""
    likeliest = logits_V.argmax()
    highest = logits_V[likeliest]
    if not highest.isfinite():
        raise NumericError(
            f"the model's highest logit is {highest.item()}: its weights are damaged, or too "
            "large for this dtype; an older checkpoint of the run may still be good"
        )
    if temperature < GREEDY_BELOW:
        return int(likeliest)
    # Without the subtraction, a low temperature would make logits infinite.
    logits_V = (logits_V - highest) / min(temperature, UNIFORM_ABOVE)
    probabilities_V = torch.softmax(logits_V, dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


class _ContinuedText:
    """The text of the tokens that follow a prompt, in pieces that never have to be taken back.

    It is the text of the prompt and these tokens together, without the prompt's. On their own they
    would give another text: many tokenizers write the first token of a text without the space in
    front of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]):
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)
        self._num_prompt_ids = len(prompt_ids)
        self._prompt = tokenizer.decode(prompt_ids)
        self._num_written = 0  # characters

    def add(self, token: int) -> Iterator[str]:
        """Add a token; yield what is now certain of the text, if there is anything new."""
        self._ids.append(token)
        yield from self._new(self._tokenizer.decode_settled)

    def rest(self, is_cut: bool = False) -> Iterator[str]:
        """Yield what has been held back, without an unfinished character if the text is cut."""
        decode = self._tokenizer.decode
        yield from self._new((lambda ids: decode(ids).rstrip("\ufffd")) if is_cut else decode)

    def _new(self, decode: Callable[[list[int]], str]) -> Iterator[str]:
        """Yield the part of the text after the prompt that has not been yielded yet."""
        text = decode(self._ids)
        if not (text.startswith(self._prompt) or self._prompt.startswith(text)):
            # The tokens spell bytes that would spoil the last characters of the prompt.
            text = self._prompt + decode(self._ids[self._num_prompt_ids :])
        piece = text[len(self._prompt) + self._num_written :]
        if piece:
            self._num_written += len(piece)
            yield piece
