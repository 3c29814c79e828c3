"""Print the texts of `moebius generate` as they are written."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moebius.cli.output import is_terminal
from moebius.config.printable import complain, printable

if TYPE_CHECKING:
    from moebius.infer.cached import Cached
    from moebius.infer.generate import Piece, Request
    from moebius.infer.language_model import LanguageModel


def print_texts(
    model: "LanguageModel",
    prompts: Sequence[str],
    request: "Request",
    num_at_once: int,
    speculates: bool,
    as_json: bool,
    tells_speed: bool,
) -> None:
    """Write the texts and print them: one as it grows, several one after another.

    as_json: print one JSON object per line instead.
    tells_speed: print tokens per second on stderr at the end. With `speculates` that is always
    printed, together with the share of accepted drafts.
    """
    from moebius.infer.generate import write

    ids = model.encoded(prompts)
    decoder = model.decoder(ids, request, num_at_once, speculates)
    is_one = len(prompts) * request.num == 1 and not as_json
    if note := model.note_on_length(ids):
        complain(note)
    start = time.perf_counter()
    pieces = write(decoder, model.tokenizer, ids, request, num_at_once, is_streamed=is_one)
    if is_one:
        num_tokens = _print_growing(prompts[0], pieces)
    else:
        num_tokens = _print_each(prompts, pieces, request.num, as_json)
    if tells_speed or speculates:
        complain(speed_line(num_tokens, time.perf_counter() - start, decoder))


def speed_line(num_tokens: int, seconds: float, decoder: "Cached") -> str:
    """Return how fast the texts were written and, with drafts, how many of them were accepted."""
    rate = num_tokens / seconds if seconds else 0.0
    line = f"{num_tokens:,} tokens in {seconds:.2f} s: {rate:,.1f} tokens/s"
    if not decoder.num_drafted:
        return line
    drafted = decoder.num_drafted * decoder.num_passes
    share = decoder.num_accepted / drafted if drafted else 0.0
    return f"{line}; {share:.0%} of {drafted:,} drafted tokens accepted"


def _print_growing(prompt: str, pieces: "Iterator[Piece]") -> int:
    """Print the prompt and its continuation; return the number of tokens."""
    shown = printable if is_terminal(sys.stdout) else str
    print(shown(prompt), end="", flush=True)
    num_tokens = 0
    for piece in pieces:
        num_tokens = piece.num_tokens
        print(shown(piece.text), end="", flush=True)
    print()
    return num_tokens


def _print_each(prompts: Sequence[str], pieces: "Iterator[Piece]", num: int, as_json: bool) -> int:
    """Print whole texts in their order; return the number of tokens of all."""
    shown = printable if is_terminal(sys.stdout) else str
    finished: dict[int, Piece] = {}
    num_printed = num_tokens = 0
    for piece in pieces:
        finished[piece.number] = piece
        num_tokens += piece.num_tokens
        while (text := finished.pop(num_printed, None)) is not None:
            number, sample = divmod(num_printed, num)
            if as_json:
                print(_json(prompts[number], number, sample, text), flush=True)
            else:
                title = f"prompt {number + 1}" + (f", text {sample + 1}" if num > 1 else "")
                print(f"--- {title} ---\n{shown(prompts[number] + text.text)}\n", flush=True)
            num_printed += 1
    return num_tokens


def _json(prompt: str, number: int, sample: int, piece: "Piece") -> str:
    """Return a text as one line, without any character that a terminal would interpret."""
    values = {
        "prompt": prompt,
        "prompt_number": number,
        "sample": sample,
        "text": piece.text,
        "tokens": piece.num_tokens,
        "end": piece.end,
    }
    return json.dumps(values)
