"""Measure how fast text is written: with the KV cache, speculatively, and by the reference.

    python bench/generate.py --reference                             `tiny` on this machine
    python bench/generate.py standard --batch 1,16,64 --tokens 256   on a GPU

The model has random weights, so the share of accepted drafts means nothing;
`bench/speculation.py` measures it for a trained model. The decoders take turns, A B A B. For each
number of texts at once, a table shows tokens per second at several lengths, which should be equal
with a cache. The line below it compares the time of a step with the time that reading what it
needs would take, at the bandwidth that is measured in the same run.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from moebius.config import Config
from moebius.config.files import read_config
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.infer.cached import Cached
from moebius.infer.decoder import Decoder, Recomputing, Writing
from moebius.infer.language_model import convert_products, new_model
from moebius.infer.sampling import Sampling
from moebius.model.transformer import Transformer
from moebius.moe.layer import MoE

LENGTHS = (32, 64, 128, 256)
NEAR = 16
"""Tokens whose time gives the speed at a length."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--reference",
        action="store_true",
        help="measure decoding without a cache, too; it is slow",
    )
    options, config = parsed(parser, tokens=256, rounds=5)
    device = choose_device(config.train.device)
    dtype = matmul_dtype(config.train, device)
    torch.manual_seed(0)
    model = new_model(config, device)
    convert_products(model, dtype)
    print(f"{options.config} on {describe(device)}, {dtype_name(dtype)}", flush=True)
    for batch in options.batch:
        compare(model, config, batch, options, dtype)


def parsed(
    parser: argparse.ArgumentParser, tokens: int, rounds: int
) -> tuple[argparse.Namespace, Config]:
    """Return the options, also those that all comparisons of speed have, and the configuration.

    tokens, rounds: their values unless they are given.
    """
    parser.add_argument(
        "--batch", type=numbers, default=[1], help="numbers of texts at once, as 1,16,64"
    )
    parser.add_argument("--tokens", type=int, default=tokens, help="length of the texts")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contender")
    options, words = parser.parse_known_args()
    # As an argument of the parser, it would take the value of a setting such as --model.dim 64.
    options.config = words.pop(0) if words and not words[0].startswith("-") else "tiny"
    return options, read_config(options.config, words)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def compare(
    model: Transformer,
    config: Config,
    batch: int,
    options: argparse.Namespace,
    dtype: torch.dtype,
) -> None:
    """Print the speed of each decoder at each length."""
    device, context = model.embedding.weight.device, config.train.seq_len
    sampling, V = Sampling(temperature=1.0), config.model.vocab_size
    length = options.tokens
    lengths = [at for at in LENGTHS if at < length] + [length]

    def forward(tokens_BS: torch.Tensor):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(tokens_BS)

    cached = {"num_texts": batch, "longest": length, "dtype": dtype}
    decoders: dict[str, Decoder] = {"cache": Cached(model, V, context, sampling, **cached)}
    if model.mtp is not None:
        decoders["drafts"] = Cached(model, V, context, sampling, **cached, speculates=True)
    if options.reference:
        decoders["reference"] = Recomputing(forward, device, V, context, sampling)
    rates: dict[str, list[list[float]]] = {name: [] for name in decoders}
    for turn in range(options.rounds + 1):
        for name, decoder in decoders.items():
            found = speeds(decoder, batch, lengths, device)
            if turn:  # the first turn warms up
                rates[name].append(found)
    print(
        f"\n{batch} at once     " + "".join(f"{f'at {at}':>12}" for at in lengths) + "  tokens/s"
    )
    for name, turns in rates.items():
        middle = [statistics.median(column) for column in zip(*turns, strict=True)]
        spread = max(middle) / min(middle) - 1
        row = "".join(f"{rate:12,.1f}" for rate in middle)
        print(f"{name:<14}{row}  largest over smallest: +{spread:.1%}")
    seconds = batch / statistics.median(turn[-1] for turn in rates["cache"])
    floor = bytes_read(model, batch, length, dtype) / bandwidth(device)
    print(
        f"a step with the cache takes {seconds * 1e3:.3f} ms at {length}; reading what it needs "
        f"takes {floor * 1e3:.3f} ms, {floor / seconds:.0%} of it",
        flush=True,
    )


def speeds(decoder: Decoder, batch: int, lengths: list[int], device: torch.device) -> list[float]:
    """Write texts from their beginning; return the tokens per second at each length."""
    if isinstance(decoder, Cached):
        decoder.begin()
    texts = [Writing([0], (row,)) for row in range(batch)]
    found = []
    for length in lengths:
        while len(texts[0].tokens) < length - NEAR:
            _advance(decoder, texts)
        wait(device)
        start, before = time.perf_counter(), len(texts[0].tokens)
        while len(texts[0].tokens) < length:
            _advance(decoder, texts)
        wait(device)
        written = len(texts[0].tokens) - before
        found.append(batch * written / (time.perf_counter() - start))
    return found


def _advance(decoder: Decoder, texts: list[Writing]) -> None:
    for text, tokens in zip(texts, decoder.advance(texts), strict=True):
        text.tokens += tokens


def bytes_read(model: Transformer, batch: int, length: float, dtype: torch.dtype) -> float:
    """Return the bytes that a step of `batch` texts has to read, each with `length` tokens.

    These are the keys and values of the texts, and all weights but those that no token needs: of
    the embedding, a token reads one row, and of E experts, T tokens with k each need
    E * (1 - (1 - k / E)**T) on average, if all are equally likely.
    """
    config = model.config
    read: dict[Tensor, float] = {}  # a tied head is the embedding, and counts once
    for module in (model.layers, model.norm, model.lm_head):
        read |= dict.fromkeys(module.parameters(), 1.0)
    for module in model.layers.modules():
        if isinstance(module, MoE) and module.experts is not None:
            chosen = config.experts_per_token(module.num_experts)
            unused = (1 - chosen / module.num_experts) ** batch
            read |= dict.fromkeys(module.experts.parameters(), 1 - unused)
    weights = sum(share * p.nbytes for p, share in read.items())
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_width
    return weights + batch * length * per_token * dtype.itemsize


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second at which the device reads a large tensor."""
    x = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    times = []
    for _ in range(7):
        wait(device)
        start = time.perf_counter()
        x.sum()
        wait(device)
        times.append(time.perf_counter() - start)
    return x.numel() * x.element_size() / min(times)


if __name__ == "__main__":
    main()
