"""Measure how fast text is written: with the KV cache, speculatively, and by the reference.

    python bench/generate.py --reference                             `tiny` on this machine
    python bench/generate.py standard --batch 1,16,64 --tokens 256   on a GPU

The model has random weights, so the share of accepted drafts means nothing; `moebius generate RUN
--speculate` prints it for a trained model. The decoders take turns, A B A B. The first table shows
tokens per second at several lengths, which should be equal with a cache. For each number of texts
at once, the second table shows the time of a step beside the time that reading the weights would
take if every expert is read, at the bandwidth that is measured in the same run.
"""

import argparse
import statistics
import time

import torch

from moebius.config import Config
from moebius.config.files import read_config
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.infer.cached import Cached
from moebius.infer.decoder import Decoder, Recomputing, Writing
from moebius.infer.language_model import convert_products, new_model
from moebius.infer.sampling import Sampling
from moebius.model.transformer import Transformer

ROUNDS = 5
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
    options, config = parsed(parser)
    device = choose_device(config.train.device)
    dtype = matmul_dtype(config.train, device)
    torch.manual_seed(0)
    model = new_model(config, device)
    convert_products(model, dtype)
    print(f"{options.config} on {describe(device)}, {dtype_name(dtype)}")
    for batch in options.batch:
        compare(model, config, batch, options, dtype)


def parsed(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """Return the options, also those that all comparisons of speed have, and the configuration."""
    parser.add_argument(
        "--batch", type=numbers, default=[1], help="numbers of texts at once, as 1,16,64"
    )
    parser.add_argument("--tokens", type=int, default=256, help="length of the texts")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
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
    floor = weight_bytes(model) / bandwidth(device)
    print(
        f"a step with the cache takes {seconds * 1e3:.3f} ms; reading all weights of products "
        f"takes {floor * 1e3:.3f} ms, {floor / seconds:.0%} of it"
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


def weight_bytes(model: Transformer) -> int:
    """Return the bytes of all weights but the embedding's, of which a token reads one row."""
    parameters = {id(p): p for p in model.parameters() if p is not model.embedding.weight}
    return sum(p.numel() * p.element_size() for p in parameters.values())


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
