"""Write texts that continue prompts, piece by piece, with a model and its tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from moebius.data import Tokenizer
from moebius.errors import ConfigError
from moebius.infer.cached import Cached
from moebius.infer.continued_text import ContinuedText, StopStrings
from moebius.infer.decoder import Decoder, Writing
from moebius.infer.sampling import Sampling
from moebius.model.transformer import Transformer

End = Literal["end_of_text", "stop", "length"]
"""Why a text ends: the model ended it, a stop string came, or it has as many tokens as wanted."""
HIGHEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to write. Raises ConfigError for a value that is not allowed."""

    max_tokens: int = 200
    """Largest number of tokens of each text."""
    sampling: Sampling = field(default_factory=Sampling)
    """How each token is drawn."""
    seed: int = 0
    """Seed of the random numbers. With the same seed, a prompt gives the same texts."""
    stop: tuple[str, ...] = ()
    """Strings that end a text, which does not contain them."""
    num: int = 1
    """Number of texts for each prompt."""

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ConfigError(f"max_tokens={self.max_tokens}: must be at least 0")
        if not 0 <= self.seed <= HIGHEST_SEED:
            raise ConfigError(f"seed={self.seed}: must be from 0 to 2**63 - 1")
        if "" in self.stop:
            raise ConfigError("stop='': must not be empty, because every text contains that")
        if self.num < 1:
            raise ConfigError(f"num={self.num}: must be at least 1")


class Piece(NamedTuple):
    """A part of one of the texts."""

    number: int
    """Number of the text; those of one prompt follow each other."""
    text: str
    """What has become certain of the text. It may be empty if the text ends."""
    num_tokens: int
    """Number of tokens that have been written of this text, without the end of text."""
    end: End | None
    """Why the text ends with this piece. None if it goes on."""


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
    then unfinished. `context` is the length of the sequences that the model was trained on; of a
    longer text, the model reads what `moebius.infer.window` says. A temperature of 0, or almost
    0, takes the most likely token. `dtype` is that of the matrix products, as in training. Raises
    ConfigError for a value that is not allowed, and NumericError if the model's logits are not
    finite.
    """
    request = Request(max_tokens=max_tokens, sampling=Sampling(temperature=temperature), seed=seed)
    prompt_ids = tokenizer.encode(prompt)
    longest = 1 + len(prompt_ids) + max_tokens
    decoder = Cached(
        model, tokenizer.size, context, request.sampling, longest=longest, dtype=dtype
    )
    for piece in write(decoder, tokenizer, [prompt_ids], request):
        if piece.text:
            yield piece.text


def write(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    request: Request,
    num_at_once: int = 1,
    is_streamed: bool = True,
) -> Iterator[Piece]:
    """Yield the pieces of all texts, each prompt's `request.num` one after another.

    prompts: the tokens of each prompt, without the end of text that precedes them.
    num_at_once: number of texts that the decoder writes at the same time; their pieces mix.
    is_streamed: yield a piece as soon as it is certain. Otherwise a text comes in one piece,
    which is quicker for many texts.

    Raises NumericError if the model's logits are not finite.
    """
    total = len(prompts) * request.num
    for first in range(0, total, num_at_once):
        if isinstance(decoder, Cached):
            decoder.begin()
        numbers = range(first, min(first + num_at_once, total))
        places = [divmod(number, request.num) for number in numbers]
        texts = [
            _Text(tokenizer, prompts[prompt], request, number, sample, is_streamed)
            for number, (prompt, sample) in zip(numbers, places, strict=True)
        ]
        for text in texts:
            if not request.max_tokens:
                yield text.ended("length")
        while not all(text.writing.is_done for text in texts):
            written = decoder.advance([text.writing for text in texts])
            for text, tokens in zip(texts, written, strict=True):
                for token in tokens:
                    if not text.writing.is_done and (piece := text.add(token)):
                        yield piece


class _Text:
    """One of the texts that are being written."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        ids: list[int],
        request: Request,
        number: int,
        sample: int,
        is_streamed: bool,
    ):
        # The random numbers do not depend on the other prompts, nor on how many samples there are.
        self.writing = Writing([tokenizer.end_of_text, *ids], (request.seed, sample))
        self._end_of_text = tokenizer.end_of_text
        self._max_tokens = request.max_tokens
        self._number = number
        self._is_streamed = is_streamed or bool(request.stop)
        self._continued = ContinuedText(tokenizer, ids)
        self._stops = StopStrings(request.stop)
        self._waiting: list[int] = []
        """Tokens that have not become text yet."""
        self._num_tokens = 0
        self._whole = "" if not is_streamed else None
        """The text up to now, if it comes in one piece."""

    def add(self, token: int) -> Piece | None:
        """Add a token; return a piece if there is a new one."""
        if token == self._end_of_text:
            return self.ended("end_of_text")
        self.writing.tokens.append(token)
        self._waiting.append(token)
        self._num_tokens += 1
        if not self._is_streamed:
            return self.ended("length") if self._num_tokens == self._max_tokens else None
        text = self._settled()
        if self._stops.is_found:
            return self._last(text, "stop")
        if self._num_tokens == self._max_tokens:
            return self.ended("length", text)
        return self._piece(text, None)

    def ended(self, end: End, before: str = "") -> Piece:
        """Return the last piece, with all that was held back. `before` is certain already."""
        text = before + self._settled() + self._stops.add(self._continued.rest(end == "length"))
        return self._last(text + self._stops.rest(), "stop" if self._stops.is_found else end)

    def _settled(self) -> str:
        """Return what has become certain by the tokens that are waiting."""
        piece = self._continued.add(self._waiting) if self._waiting else ""
        self._waiting = []
        return self._stops.add(piece)

    def _last(self, text: str, end: End) -> Piece:
        self.writing.is_done = True
        piece = self._piece(text, end)
        return piece or Piece(self._number, "", self._num_tokens, end)

    def _piece(self, text: str, end: End | None) -> Piece | None:
        """Return a piece of this text, or None if there is nothing to tell yet."""
        if self._whole is not None:
            self._whole += text
            if end is None:
                return None
            text = self._whole
        return Piece(self._number, text, self._num_tokens, end) if text or end else None
