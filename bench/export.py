"""Compare exported models with ours: random configurations, tokenizers, greedy text.

    python bench/export.py                     300 configurations, about 10 minutes on two cores
    python bench/export.py --configurations 20 --seed 7

Each configuration that a stock architecture can hold is built with random weights, written, loaded
with stock transformers, and compared in float32: on full sequences, in batches that are padded on
the left, and token by token with the KV cache of transformers. The exported tokenizers are
compared on 1,000 texts in many scripts.
"""

import random
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.config import DataConfig, ModelConfig
from moebius.cost.exports import holder
from moebius.data import Tokenizer
from moebius.data.tokenizer import END_OF_TEXT, prepare_tokenizer
from moebius.errors import ConfigError
from moebius.infer.export import write_stock
from moebius.infer.generate import generate
from moebius.infer.stock_check import Difference, compare, logits_of, stock_model
from moebius.infer.stock_config import TextSettings
from moebius.infer.stock_shape import StockShape
from moebius.infer.stock_tokenizer import write_tokenizer
from moebius.model.transformer import Transformer
from moebius.train.state import model_tensors

VOCABULARY, PADDED = 97, 101
"""Number of ids, and number of rows of our embedding."""
BATCH, LENGTH = 3, 24
TEXTS, LONGEST_TEXT = 1000, 10_000
SCRIPTS = (
    (0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x300, 0x36F), (0x2000, 0x206F), (0, 0x1F),
    (0x10300, 0x1034F), (0xE000, 0xE0FF),
)  # fmt: skip
"""Ranges of code points: scripts, emoji, combining marks, spaces, control characters."""


class Case(NamedTuple):
    """A configuration, and whether its routers have a choice bias."""

    model: ModelConfig
    has_bias: bool


class Compared(NamedTuple):
    """How much a stock model differs from ours, in three ways of computing its logits."""

    architecture: str
    full: Difference
    padded: Difference
    cached: Difference

    @property
    def largest(self) -> float:
        return max(self.full.largest, self.padded.largest, self.cached.largest)


def cases(seed: int) -> Iterator[Case]:
    """Yield random configurations that a stock architecture can hold, without end."""
    draw = random.Random(seed)
    while True:
        try:
            case = Case(ModelConfig(**_settings(draw)), draw.random() < 0.4)
        except ConfigError:
            continue
        if holder(case.model, case.has_bias).architecture:
            yield case


def _settings(draw: random.Random) -> dict[str, Any]:
    is_dense, group, kv_heads = draw.random() < 0.2, draw.choice((1, 2, 3)), draw.choice((1, 2, 3))
    num_layers = draw.choice((2, 3))
    counts = [draw.choice((0, 1, 2, 3, 4, 6, 8)) for _ in range(num_layers)]
    count = draw.choice((1, 2, 4, 8, tuple(counts)))
    base = draw.choice((0.0, 0.5, 1.0, 2.0))
    return {
        "vocab_size": PADDED,
        "dim": draw.choice((32, 48, 64, 96)),
        "num_layers": num_layers,
        "num_heads": group * kv_heads,
        "num_kv_heads": kv_heads,
        "head_dim": draw.choice((0, 8, 14, 16, 32)),
        "qk_norm": draw.random() < 0.5,
        "rope_theta": draw.choice((100.0, 10_000.0, 1e6)),
        "rope_fraction": draw.choice((0.0, 0.25, 0.5, 0.75, 1.0, draw.random())),
        "rope_scope": draw.choice(("dims", "dims", "dims", "heads")),
        "activation": draw.choice(("swiglu", "swiglu", "relu2", "gelu")),
        "base_expansion": max(base, 1.0) if is_dense else base,
        "residual_mix": draw.choice(("add", "add", "learned")),
        "moe_min_expansion": draw.choice((1.0, 2.0, 4.0)),
        "moe_max_expansion": draw.choice((1.0, 2.0, 4.0)),
        "num_experts": 0 if is_dense else count,
        "router_type": draw.choice(("softmax_topk", "softmax_topk", "switch", "sigmoid")),
        "router_top_k": draw.choice((1, 1, 2, 3, 4)),
        "router_threshold": draw.choice((0.0, 0.5)),
        "router_score": draw.choice(("softmax", "sigmoid")),
        "renormalize_gates": draw.random() < 0.5,
        "gate_scale": draw.choice((0.0, 1.0, 2.5)),
        "eval_capacity_factor": draw.choice((0.0, 8.0)),
        "tie_embeddings": draw.random() < 0.3,
        "norm_eps": draw.choice((1e-5, 1e-6)),
    }


def build(case: Case, seed: int) -> Transformer:
    """Return our model with random weights, all of which matter."""
    torch.manual_seed(seed)
    model = Transformer(case.model).eval()
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("weight_ED"):
                tensor.mul_(10)  # untrained routers are almost undecided
            elif name.endswith("bias_E") and case.has_bias:
                tensor.normal_(std=0.05)
    return model


def write(case: Case, model: Transformer, folder: Path, end_of_text: int = 0) -> StockShape:
    """Write the stock model of ours into a folder, and return its shape."""
    architecture = holder(case.model, case.has_bias).architecture
    assert architecture is not None
    shape = StockShape(case.model, architecture)
    write_stock(folder, shape, model_tensors(model), TextSettings(VOCABULARY, end_of_text, LENGTH))
    return shape


def compared(case: Case, folder: Path, seed: int) -> Compared:
    """Write a model into a folder, load it with transformers and compare it with ours."""
    model = build(case, seed)
    shape = write(case, model, folder)
    ours, theirs = _Trimmed(model), stock_model(folder)
    tokens_BS = torch.randint(VOCABULARY, (BATCH, LENGTH))
    return Compared(
        shape.architecture.name,
        compare(ours, logits_of(theirs), tokens_BS),
        compare(ours, lambda tokens: _padded(theirs, tokens), tokens_BS),
        compare(ours, lambda tokens: _cached(theirs, tokens), tokens_BS),
    )


class _Trimmed(Transformer):
    """Our model without the logits of rows that stand for no token."""

    def __init__(self, model: Transformer):
        self.__dict__ = model.__dict__

    def forward(self, tokens_BS: Tensor, document_BS: Tensor | None = None):
        output = super().forward(tokens_BS, document_BS)
        return output._replace(logits_BSV=output.logits_BSV[..., :VOCABULARY])


def _padded(model: Any, tokens_BS: Tensor) -> Tensor:
    """Return the logits from a batch in which each row has another number of pads before it."""
    B, S = tokens_BS.shape
    ids = torch.zeros(B, S + 2 * B, dtype=torch.long)
    mask = torch.zeros_like(ids)
    starts = [2 * row + 1 for row in range(B)]
    for row, start in enumerate(starts):
        ids[row, start : start + S], mask[row, start:] = tokens_BS[row], 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return torch.stack([logits[row, start : start + S] for row, start in enumerate(starts)])


def _cached(model: Any, tokens_BS: Tensor) -> Tensor:
    """Return the logits that come one by one, with the KV cache of transformers."""
    cache, logits = None, []
    for token_B1 in tokens_BS.split(1, dim=1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # version 5.40 renames the argument
            output = model(token_B1, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of one to three scripts; some spell the name of the end-of-text token."""
    draw = random.Random(seed)
    result = []
    for _ in range(count):
        ranges = draw.sample(SCRIPTS, draw.choice((1, 2, 3)))
        letters = [chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 60))]
        letters += draw.choices((" ", "  ", "\n", "\t", END_OF_TEXT, "</s>", "'s", "."), k=4)
        draw.shuffle(letters)
        result.append("".join(letters))
    return result


def tokenizer(kind: str) -> Tokenizer:
    """Return a tokenizer of that kind; a BPE is trained on some of the texts."""
    return prepare_tokenizer(DataConfig(tokenizer=kind), 1000, texts(200, seed=1))


def wrong_texts(own: Tokenizer, folder: Path, count: int) -> list[str]:
    """Return the texts that the exported tokenizer gives other ids or another text for."""
    from transformers import AutoTokenizer

    write_tokenizer(folder, own, LONGEST_TEXT)
    theirs = AutoTokenizer.from_pretrained(folder)
    wrong = []
    for text in texts(count):
        ids = [own.end_of_text, *own.encode(text)]
        back = theirs.decode(ids[1:])
        if theirs(text)["input_ids"] != ids or back != own.decode(ids[1:]):
            wrong.append(text)
    return wrong


def greedy_pair(case: Case, folder: Path, seed: int, prompt: str = "def f") -> tuple[str, str]:
    """Return the greedy texts of our `generate` and of transformers' on the exported model."""
    from transformers import AutoTokenizer

    own = prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, [])
    case = case._replace(model=replace(case.model, vocab_size=own.size))
    model = build(case, seed)
    architecture = holder(case.model, case.has_bias).architecture
    assert architecture is not None
    shape = StockShape(case.model, architecture)
    settings = TextSettings(own.size, own.end_of_text, LENGTH)
    write_stock(folder, shape, model_tensors(model), settings)
    write_tokenizer(folder, own, LENGTH)
    new = LENGTH - len(prompt) - 1
    ours = "".join(generate(model, own, prompt, new, LENGTH, temperature=0))
    theirs = AutoTokenizer.from_pretrained(folder)
    inputs = theirs(prompt, return_tensors="pt")
    ids = stock_model(folder).generate(**inputs, do_sample=False, max_new_tokens=new)[0]
    continued = ids[inputs["input_ids"].shape[1] :].tolist()
    text = theirs.decode([id_ for id_ in continued if id_ != own.end_of_text])
    return ours, text.rstrip("\ufffd")


def _class_name(case: Case) -> str:
    architecture = holder(case.model, case.has_bias).architecture
    return architecture.name if architecture else ""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import transformers

    print(f"transformers {transformers.__version__}, torch {torch.__version__}, float32")
    names, failed, left_out, tokens = Counter[str](), Counter[str](), 0, 0
    worst = {"full": 0.0, "padded": 0.0, "cached": 0.0}
    pairs = zip(range(options.configurations), cases(options.seed), strict=False)
    num_greedy = num_equal = 0
    with tempfile.TemporaryDirectory() as place:
        for number, case in pairs:
            folder = Path(place) / str(number)
            folder.mkdir()
            try:
                result = compared(case, folder, number)
            except ValueError as error:  # an older transformers that cannot run the class
                failed[f"{_class_name(case)}: {error}"] += 1
                continue
            names[result.architecture] += 1
            for name in worst:
                difference = getattr(result, name)
                worst[name] = max(worst[name], difference.largest)
                left_out, tokens = left_out + difference.num_left_out, tokens + BATCH * LENGTH
            if result.largest > 1e-5:
                print(f"{result.largest:.1e} {result.architecture} {case}", file=sys.stderr)
            if number % 10 == 0:
                ours, theirs = greedy_pair(case, folder, number)
                num_greedy, num_equal = num_greedy + 1, num_equal + (ours == theirs)
        print(f"{sum(names.values())} configurations: {dict(names.most_common())}")
        for reason, count in failed.items():
            print(f"{count} more fail: {reason}")
        print("largest relative difference of logits: ", end="")
        print(", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
        print(f"left out because of equal router scores: {left_out:,} of {tokens:,} tokens")
        print(f"greedy text of transformers' generate equals ours: {num_equal} of {num_greedy}")
        for kind in ("bpe", "bytes"):
            wrong = wrong_texts(tokenizer(kind), Path(place), TEXTS)
            print(f"tokenizer {kind}: {TEXTS - len(wrong)} of {TEXTS} texts equal, ids and text")


if __name__ == "__main__":
    main()
