"""Compare how fast we and stock transformers write text with the same model.

    python bench/generate_stock.py                          `tiny` on this machine
    python bench/generate_stock.py standard --batch 1,16,64     on a GPU, in about 6 minutes

The model has random weights and is exported for transformers, which writes with its static KV
cache; on a GPU, `generate` compiles its step and captures it in CUDA graphs. It gets all that
helps it: a step that is compiled for one number of texts, and one cache that is used again, so
that nothing is compiled or captured while time is taken. Both draw every token from all ids. The
texts begin with one token and have no end. The two take turns, A B A B, and a line shows the
median of whole texts, with the smallest and the largest ratio of two neighboring turns. The last
columns are the time that reading what a step needs would take, at the bandwidth that is measured
in the same run, as a share of each one's time.
"""

import argparse
import inspect
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generate import bandwidth, bytes_read, parsed

from moebius.config import Config
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
from moebius.model.transformer import Transformer

TOKENS, ROUNDS = 128, 3
WARM_UP = 8
"""Tokens that transformers writes before time is taken: enough to compile and to capture."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options, config = parsed(parser, tokens=TOKENS, rounds=ROUNDS)
    device = choose_device(config.train.device)
    dtype = matmul_dtype(config.train, device)
    torch.manual_seed(0)
    model = new_model(config, device)
    stock = stock_model(config.model, model.state_dict(), config.train.seq_len, dtype).to(device)
    convert_products(model, dtype)
    import transformers

    bytes_per_second = bandwidth(device)
    print(
        f"{options.config} on {describe(device)}, {dtype_name(dtype)}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {bytes_per_second / 1e12:.2f} TB/s are read"
    )
    print(
        f"{'texts':>5} {'ours':>12} {'transformers':>13} tokens/s  ratio (lowest to highest)"
        "   share of the floor: ours, theirs",
        flush=True,
    )
    for batch in options.batch:
        compare(model, stock, config, batch, options, dtype, bytes_per_second)


def compare(
    model: Transformer,
    stock: Any,
    config: Config,
    batch: int,
    options: argparse.Namespace,
    dtype: torch.dtype,
    bytes_per_second: float,
) -> None:
    """Print the speed of both with this number of texts."""
    device, length = model.embedding.weight.device, options.tokens
    start = time.perf_counter()
    decoder = Cached(
        model,
        config.model.vocab_size,
        config.train.seq_len,
        Sampling(temperature=1.0),
        num_texts=batch,
        longest=1 + length,
        dtype=dtype,
    )
    write(decoder, batch, min(WARM_UP, length))
    own_warm_up = time.perf_counter() - start
    theirs = Stock(stock, batch, length)
    theirs.write(min(WARM_UP, length))
    their_warm_up = time.perf_counter() - start - own_warm_up
    print(
        f"  (the first {min(WARM_UP, length)} tokens took {own_warm_up:.1f} s and "
        f"{their_warm_up:.1f} s)",
        flush=True,
    )
    run_ours = timed(partial(write, decoder, batch, length), device)
    run_theirs = timed(partial(theirs.write, length), device)
    times = [(run_ours(), run_theirs()) for _ in range(options.rounds)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [b / a for a, b in times]
    num_tokens = batch * length
    # The mean number of tokens in the cache is half of the length.
    floor = bytes_read(model, batch, length / 2, dtype) / bytes_per_second * length
    print(
        f"{batch:>5} {num_tokens / own:>12,.1f} {num_tokens / other:>13,.1f}           "
        f"{other / own:5.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"{floor / own:>16.0%}, {floor / other:.0%}",
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
    transformers.utils.logging.disable_progress_bar()
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


class Stock:
    """Writes texts with transformers' `generate` and one static cache."""

    def __init__(self, model: Any, batch: int, length: int):
        """Allocate the cache for `batch` texts of `length` tokens after the first one."""
        import transformers

        self._model = model
        self._first = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        self._cache = transformers.StaticCache(config=model.config, max_cache_len=1 + length)
        names = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in names else "past_key_values"  # new and old transformers
        self._compiling: dict[str, Any] = {}
        if model.device.type == "cuda":
            # By itself, it would compile a slower step for any number of texts from the second on.
            self._compiling["compile_config"] = transformers.CompileConfig(dynamic=False)

    def write(self, length: int) -> None:
        """Write this many tokens."""
        self._cache.reset()
        written = self._model.generate(
            self._first,
            attention_mask=torch.ones_like(self._first),
            min_new_tokens=length,
            max_new_tokens=length,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            pad_token_id=0,
            eos_token_id=None,
            **{self._name: self._cache},
            **self._compiling,
        )
        assert written.shape == (len(self._first), 1 + length)


if __name__ == "__main__":
    main()
