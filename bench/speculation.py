"""Measure self-speculative decoding of a trained run: equal texts, accepted drafts, and speed.

    python bench/speculation.py runs/my-run                               on a GPU, in 3 minutes
    python bench/speculation.py runs/my-run --batch 1,4 --tokens 32       on a CPU

The run needs multi-token prediction (model.use_mtp). Prompts are pieces of its held-out text.

First, each prompt is continued greedily in float32, with and without drafts, and the tokens are
compared. Where they differ, the script prints how far apart the two likeliest tokens were there,
relative to the largest logit: rounding decides between tokens that are closer than about 1e-6.

Then both ways of decoding take turns, A B A B, in the run's own number format, for each number of
texts at once, greedily and at temperature 0.8. A line shows the median of the turns, the ratio of
neighboring turns, the share of the drafted tokens that were accepted, and the tokens that a text
got per forward pass.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from generate import numbers

from moebius.config.printable import complain
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import dtype_name
from moebius.infer.cached import Cached
from moebius.infer.decoder import Writing
from moebius.infer.evaluable import Evaluable, evaluable
from moebius.infer.language_model import LanguageModel
from moebius.infer.sampling import Sampling

PROMPT = 32
"""Tokens of a prompt, without the end of text before it."""
AT_ONCE = 50
"""Texts that are written at once to compare their tokens."""
GREEDY, SAMPLED = Sampling(temperature=0), Sampling()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=200, help="number of texts to compare")
    parser.add_argument("--compared", type=int, default=64, help="tokens of each of them")
    parser.add_argument(
        "--batch", type=numbers, default=[1, 16, 64], help="numbers of texts at once, as 1,16,64"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the texts in turns")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    options = parser.parse_args()
    found = evaluable(options.run, options.step, complain)
    device = choose_device(options.device)
    prompts = held_out_prompts(found, max(options.prompts, *options.batch))
    trained_on = f"{found.config.train.dtype}, step {found.step or 0:,}"
    print(f"{options.run} ({trained_on}) on {describe(device)}, torch {torch.__version__}")
    compare_texts(in_float32(found, device), prompts[: options.prompts], options.compared)
    model = found.language_model(device)
    print(
        f"\nin {dtype_name(model.dtype)}, {options.tokens} tokens a text\n"
        "texts  temperature   plain  drafts, tokens/s  ratio (lowest to highest)   accepted  "
        "tokens a pass",
        flush=True,
    )
    for batch in options.batch:
        for sampling in (GREEDY, SAMPLED):
            compare_speed(model, prompts[:batch], sampling, options.tokens, options.rounds)


def held_out_prompts(found: Evaluable, count: int) -> list[list[int]]:
    """Return pieces of the run's held-out text, which may overlap if it is short."""
    corpus = found.held_out_text(complain)
    last = len(corpus.val) - PROMPT
    ends = found.tokenizer.end_of_text
    starts = [last * number // count for number in range(count)]
    pieces = [corpus.val.read(start, start + PROMPT).tolist() for start in starts]
    return [[ends, *(token for token in piece if token != ends)] for piece in pieces]


def in_float32(found: Evaluable, device: torch.device) -> LanguageModel:
    """Return the model with matrix products in float32."""
    config = replace(found.config, train=replace(found.config.train, dtype="float32"))
    return replace(found, config=config).language_model(device)


def compare_texts(model: LanguageModel, prompts: list[list[int]], length: int) -> None:
    """Print how many greedy texts are the same with drafts, token by token."""
    start = time.perf_counter()
    plain, drafted = [], []
    at_once = min(AT_ONCE, len(prompts))
    decoders = [
        decoder(model, at_once, GREEDY, length, speculates) for speculates in (False, True)
    ]
    for first in range(0, len(prompts), at_once):
        part = prompts[first : first + at_once]
        for texts, own in zip((plain, drafted), decoders, strict=True):
            texts += written(own, part, length)
    different = [n for n in range(len(prompts)) if plain[n] != drafted[n]]
    print(
        f"greedy in {dtype_name(model.dtype)}: {len(prompts) - len(different)} of {len(prompts)} "
        f"texts of {length} tokens are identical, {len(set(map(tuple, plain)))} of them distinct; "
        f"{accepted(decoders[1]):.1%} of the drafted tokens were accepted "
        f"({time.perf_counter() - start:.0f} s)",
        flush=True,
    )
    for n in different:
        pairs = zip(plain[n], drafted[n], strict=True)
        at = next(i for i, (one, other) in enumerate(pairs) if one != other)
        print(
            f"  text {n + 1}, token {at - len(prompts[n]) + 1}: the two likeliest tokens differ "
            f"by {margin(model, plain[n][:at]):.1e} of the largest logit"
        )


@torch.no_grad()
def margin(model: LanguageModel, tokens: list[int]) -> float:
    """Return the difference of the two highest logits of the next token, relative to the largest.

    It is computed by the reference, which reads the whole text at once.
    """
    tokens_1S = torch.tensor(
        [tokens[-model.context :]], device=model.model.embedding.weight.device
    )
    logits_V = model.model(tokens_1S).logits_BSV[0, -1, : model.tokenizer.size].float()
    highest = logits_V.topk(2).values
    return float((highest[0] - highest[1]) / logits_V.abs().max())


def compare_speed(
    model: LanguageModel,
    prompts: list[list[int]],
    sampling: Sampling,
    length: int,
    rounds: int,
) -> None:
    """Print the speed of both ways for these prompts at once."""
    device = model.model.embedding.weight.device
    plain, drafting = (
        decoder(model, len(prompts), sampling, length, speculates) for speculates in (False, True)
    )

    def seconds(own: Cached) -> float:
        wait(device)
        start = time.perf_counter()
        written(own, prompts, length)
        wait(device)
        return time.perf_counter() - start

    for own in (plain, drafting):
        seconds(own)
    times = [(seconds(plain), seconds(drafting)) for _ in range(rounds)]
    without, with_drafts = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    num_tokens = len(prompts) * length
    print(
        f"{len(prompts):>5} {sampling.temperature:>12} {num_tokens / without:>7,.0f} "
        f"{num_tokens / with_drafts:>7,.0f}           {without / with_drafts:5.2f}x "
        f"({min(ratios):.2f} to {max(ratios):.2f})        {accepted(drafting):7.1%} "
        f"{1 + accepted(drafting) * drafting.num_drafted:12.2f}",
        flush=True,
    )


def decoder(
    model: LanguageModel, at_once: int, sampling: Sampling, length: int, speculates: bool
) -> Cached:
    """Return a decoder for that many texts, each of `length` tokens after its prompt."""
    return Cached(
        model.model,
        model.tokenizer.size,
        model.context,
        sampling,
        num_texts=at_once,
        longest=1 + PROMPT + length,
        dtype=model.dtype,
        speculates=speculates,
    )


def written(own: Cached, prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Return the tokens of the prompts and of `length` more; the end of text ends nothing."""
    own.begin()
    texts = [Writing(list(prompt), (0, row)) for row, prompt in enumerate(prompts)]
    longest = [len(prompt) + length for prompt in prompts]
    while not all(text.is_done for text in texts):
        for row, new in enumerate(own.advance(texts)):
            texts[row].tokens = (texts[row].tokens + new)[: longest[row]]
            texts[row].is_done = len(texts[row].tokens) == longest[row]
    return [text.tokens for text in texts]


def accepted(drafting: Cached) -> float:
    """Return the share of drafted tokens that were accepted."""
    return drafting.num_accepted / max(1, drafting.num_drafted * drafting.num_passes)


if __name__ == "__main__":
    main()
