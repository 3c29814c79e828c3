"""The text of tokens that are written one after another, in pieces that are never taken back."""

from collections.abc import Callable, Iterator, Sequence

from moebius.data import Tokenizer

KEPT = 16
"""Tokens before the next one that are decoded with it. Decoders look back at most at one word, or
at one character that is spelled in bytes."""
LONGEST = 64
"""Tokens that are decoded at once before older ones are dropped. Otherwise, each token of a long
text would take longer than the one before it."""


class ContinuedText:
    """The text of the tokens that follow a prompt.

    It is the text of the prompt and these tokens together, without the prompt's. On their own they
    would give another text: many tokenizers write the first token of a text without the space in
    front of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]):
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)
        self._num_old_ids = len(prompt_ids)
        self._old = tokenizer.decode(prompt_ids)
        """The text of the first `_num_old_ids` ids, which is not to be written."""
        self._num_written = 0  # characters after it

    def add(self, tokens: Sequence[int]) -> str:
        """Add tokens; return what is now certain of the text and was not returned yet."""
        self._ids += tokens
        piece = self._new(self._tokenizer.decode_settled)
        if len(self._ids) > LONGEST:
            self._forget()
        return piece

    def rest(self, is_cut: bool = False) -> str:
        """Return what has been held back, without an unfinished character if the text is cut."""
        decode = self._tokenizer.decode
        return self._new((lambda ids: decode(ids).rstrip("\ufffd")) if is_cut else decode)

    def _new(self, decode: Callable[[list[int]], str]) -> str:
        """Return the part of the text that has not been written yet."""
        text, old = decode(self._ids), self._old
        if not (text.startswith(old) or old.startswith(text)):
            # The tokens spell bytes that would spoil the last characters of the prompt.
            text = old + decode(self._ids[self._num_old_ids :])
        piece = text[len(old) + self._num_written :]
        self._num_written += len(piece)
        return piece

    def _forget(self) -> None:
        """Drop the older tokens if that certainly changes nothing in what follows.

        All text must have been written, and must end in the text of the newer tokens alone.
        """
        text, kept = self._tokenizer.decode(self._ids), self._ids[-KEPT:]
        if len(text) != len(self._old) + self._num_written:
            return
        shorter = self._tokenizer.decode(kept)
        if shorter and text.endswith(shorter):
            self._ids, self._num_old_ids = kept, len(kept)
            self._old, self._num_written = shorter, 0


class StopStrings:
    """Cuts a text, which comes in pieces, before the first of several strings.

    The first is the one that is complete first, so it does not matter how the text is divided into
    pieces. An end of the text that may become such a string is held back.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False
        """Whether one of the strings has come. Nothing is returned after it."""

    def add(self, piece: str) -> str:
        """Return what is certain to come before any of the strings."""
        if self.is_found or not self._stops:
            return "" if self.is_found else piece
        text = self._held + piece
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops]
        if complete := [(end, start) for end, start in found if start >= 0]:
            self.is_found, self._held = True, ""
            return text[: min(complete)[1]]
        num_held = max(self._overlaps(text))
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def rest(self) -> str:
        """Return what is held back once nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _overlaps(self, text: str) -> Iterator[int]:
        """Yield how many characters of the text's end are the beginning of each string."""
        for stop in self._stops:
            lengths = range(min(len(stop) - 1, len(text)), 0, -1)
            yield next((n for n in lengths if text.endswith(stop[:n])), 0)
