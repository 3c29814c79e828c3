"""Compare how fast we and stock transformers write text with the same model.

    python bench/generate_stock.py                          `tiny` on this machine
    python bench/generate_stock.py standard --batch 1,16,64 --tokens 256     on a GPU

The model has random weights and is exported for transformers, which writes with its static KV
cache; it compiles its step by itself on a GPU. Both draw every token from all ids. The texts begin
with one token and have no end. The two take turns, A B A B, and the table shows the median of
whole texts, with the largest and the smallest ratio of two neighboring turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generate import bandwidth, parsed, weight_bytes

from moebius.cost.exports import holder
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.precision import dtype_name, matmul_dtype
from moebius.infer.cached import Cached
from moebius.infer.decoder import Writing
from moebius.infer.export import write_stock
from moebius.infer.language_model import convert_products, new_model
from moebius.infer.sampling import Sampling
from moebius.infer.stock_config import TextSettings
from moebius.infer.stock_shape import StockShape


def main() -> None:
    options, config = parsed(argparse.ArgumentParser(description=__doc__))
    device = choose_device(config.train.device)
    dtype = matmul_dtype(config.train, device)
    torch.manual_seed(0)
    model = new_model(config, device)
    stock = stock_model(config.model, model.state_dict(), config.train.seq_len, dtype).to(device)
    convert_products(model, dtype)
    print(f"{options.config} on {describe(device)}, {dtype_name(dtype)}")
    print("texts at once   ours   transformers, tokens/s   ratio   share of the floor")
    floor = weight_bytes(model) / bandwidth(device)
    for batch in options.batch:
        decoder = Cached(
            model,
            config.model.vocab_size,
            config.train.seq_len,
            Sampling(temperature=1.0),
            num_texts=batch,
            longest=options.tokens,
            dtype=dtype,
        )
        ours = timed(partial(write, decoder, batch, options.tokens), device)
        theirs = timed(partial(write_with, stock, batch, options.tokens, device), device)
        for warm_up in (ours, theirs, theirs):  # the first one of transformers compiles
            warm_up()
        times = [(ours(), theirs()) for _ in range(options.rounds)]
        own, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [b / a for a, b in times]
        num_tokens = batch * options.tokens
        print(
            f"{batch:>13} {num_tokens / own:10,.1f} {num_tokens / other:10,.1f} "
            f"{other / own:10.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"{floor * options.tokens / own:9.0%}",
            flush=True,
        )


def stock_model(
    config: Any, own: dict[str, torch.Tensor], seq_len: int, dtype: torch.dtype
) -> Any:
    """Return the same model as transformers loads it from an export."""
    import transformers

    architecture = holder(config).architecture
    if architecture is None:
        sys.exit(f"no stock architecture holds this model: {holder(config).reason}")
    shape = StockShape(config, architecture)
    own = {n: t.cpu() for n, t in own.items() if not n.startswith("mtp.")}
    text = TextSettings(config.vocab_size, 0, seq_len)
    with tempfile.TemporaryDirectory() as folder:
        write_stock(Path(folder), shape, own, text, dtype_name(dtype))
        stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return stock.eval()


def timed(work: Callable[[], None], device: torch.device) -> Callable[[], float]:
    """Return a function that does the work and returns the seconds that it took."""

    def run() -> float:
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - start

    return run


def write(decoder: Cached, batch: int, length: int) -> None:
    """Write texts of `length` tokens after the first one."""
    decoder.begin()
    texts = [Writing([0], (row,)) for row in range(batch)]
    for _ in range(length):
        for text, tokens in zip(texts, decoder.advance(texts), strict=True):
            text.tokens += tokens


def write_with(stock: Any, batch: int, length: int, device: torch.device) -> None:
    """Write as many tokens with transformers."""
    first = torch.zeros(batch, 1, dtype=torch.long, device=device)
    written = stock.generate(
        first,
        attention_mask=torch.ones_like(first),
        min_new_tokens=length,
        max_new_tokens=length,
        do_sample=True,
        top_k=0,
        temperature=1.0,
        cache_implementation="static",
        pad_token_id=0,
        eos_token_id=None,
    )
    assert written.shape == (batch, 1 + length)


if __name__ == "__main__":
    main()
