"""The loss on held-out text, compared with the definition of cross-entropy."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius.data import prepare
from moebius.model.transformer import seeded
from moebius.train.evaluate import evaluate

S = 32
"""Length of a sequence in the `small` configuration."""


@pytest.mark.parametrize("masking", [True, False])
def test_bits_per_byte_by_hand(small, masking):
    config = replace(
        small,
        data=replace(small.data, document_masking=masking),
        model=replace(small.model, expert_dropout=0.5),
    )
    corpus = prepare(config.data, config.model.vocab_size)
    model = seeded(0, config.model)
    result = evaluate(model, corpus, config, torch.device("cpu"))
    assert result is not None
    assert model.training  # as it was before

    model.eval()
    tokens = torch.from_numpy(corpus.val.read(0, len(corpus.val)))
    num_windows = math.ceil((len(tokens) - 1) / S)
    nats, num_bytes = [], 0
    for number in range(62):  # as many windows as fit in 2000 tokens
        start = math.floor((number + 0.5) * num_windows / 62) * S
        window_1L = tokens[start : start + S + 1][None]
        documents_1L = (window_1L == corpus.tokenizer.end_of_text).cumsum(dim=1)
        documents_1S = documents_1L[:, :S] if masking else None
        with torch.no_grad():
            logits_1SV = model(window_1L[:, :S], documents_1S).logits_BSV.double()
        nats.append(torch.nn.functional.cross_entropy(logits_1SV[0], window_1L[0, 1:]).item())
        num_bytes += int((window_1L[0, 1:] != corpus.tokenizer.end_of_text).sum())
    assert result.tokens == S * len(nats)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-5)
    assert result.num_bytes == num_bytes
    bits = np.sum(nats) * S / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-5)
    assert result.by_source == {}
    assert result.lines() == [
        f"validation loss {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per "
        f"byte (1,984 held-out tokens, {num_bytes:,} bytes)"
    ]


@pytest.mark.parametrize("use_mtp", [False, True])
@pytest.mark.parametrize("eval_tokens", [50, 700, pytest.param(10**6, marks=pytest.mark.heavy)])
def test_the_micro_batch_does_not_matter(small, use_mtp, eval_tokens):
    train = replace(small.train, eval_tokens=eval_tokens, batch_size=12, seq_len=30)
    config = replace(small, train=train, model=replace(small.model, use_mtp=use_mtp))
    corpus = prepare(config.data, config.model.vocab_size)
    model = seeded(0, config.model).double()
    results = []
    for size in (1, 3, 4, 12):
        config = replace(config, train=replace(train, micro_batch_size=size))
        results.append(evaluate(model, corpus, config, torch.device("cpu")))
    for result in results:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-12)
        assert result._replace(loss=0) == results[0]._replace(
            loss=0, bits_per_byte=pytest.approx(results[0].bits_per_byte, rel=1e-12)
        )
    if eval_tokens == 10**6:  # all but the first separator
        assert results[0].tokens == len(corpus.val) - 1
        assert results[0].num_bytes == corpus.val.num_bytes


def two_languages(folder: Path) -> tuple[Path, Path]:
    """Write 400 English and then 400 Chinese documents, as one file and each as its own."""
    english = [f"the number of sheep in field {n} is {n * n}" for n in range(400)]
    chinese = [f"第{n}块田里有{n * n}只羊和很多别的动物" for n in range(400)]
    files = folder / "english.jsonl", folder / "chinese.jsonl"
    for file, texts in zip(files, (english, chinese), strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "both.jsonl").write_text("".join(file.read_text() for file in files))
    return files


def test_bits_and_bytes_are_those_of_the_same_text(small, tmp_path):
    """The exact answer is the loss on all of the text: a sample comes close to it."""
    two_languages(tmp_path)
    data = replace(
        small.data, source=str(tmp_path / "both.jsonl"), tokenizer="bpe", val_fraction=0.5
    )
    corpus = prepare(data, 500)
    model = seeded(0, replace(small.model, vocab_size=500))
    evaluations = []
    for eval_tokens in (1000, 10**6):
        train = replace(small.train, eval_tokens=eval_tokens)
        config = replace(small, data=data, model=model.config, train=train)
        evaluations.append(evaluate(model, corpus, config, torch.device("cpu")))
    sample, whole = evaluations
    assert whole.num_bytes == corpus.val.num_bytes and sample.tokens < 0.25 * whole.tokens
    bits = whole.loss * whole.tokens / math.log(2)
    assert whole.bits_per_byte == pytest.approx(bits / corpus.val.num_bytes, rel=1e-6)
    assert sample.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.03)
    per_token = [evaluation.num_bytes / evaluation.tokens for evaluation in evaluations]
    assert per_token[0] == pytest.approx(per_token[1], rel=0.03)


def test_each_source_has_its_own_figures(small, tmp_path):
    files = two_languages(tmp_path)
    source = ",".join(map(str, files))
    data = replace(small.data, source=source, weights=(3, 1), val_fraction=0.5)
    config = replace(small, data=data, train=replace(small.train, eval_tokens=4000))
    corpus = prepare(data, config.model.vocab_size)
    model = seeded(0, config.model)
    result = evaluate(model, corpus, config, torch.device("cpu"))
    assert result is not None and list(result.by_source) == list(map(str, files))
    english, chinese = result.by_source.values()
    assert (english.share, chinese.share) == (0.75, 0.25)
    assert english.tokens + chinese.tokens == result.tokens
    assert english.tokens == pytest.approx(3 * chinese.tokens, rel=0.05)
    assert result.loss == pytest.approx(0.75 * english.loss + 0.25 * chinese.loss)
    for file, figures in zip(files, (english, chinese), strict=True):
        single = replace(config, data=replace(data, source=str(file), weights=1.0))
        train = replace(single.train, eval_tokens=int(4000 * figures.share))
        single = replace(single, train=train)
        corpus_of_one = prepare(single.data, config.model.vocab_size)
        alone = evaluate(model, corpus_of_one, single, torch.device("cpu"))
        assert alone is not None
        assert (alone.loss, alone.tokens) == (pytest.approx(figures.loss), figures.tokens)
        assert alone.bits_per_byte == pytest.approx(figures.bpb)
    first, *of_sources = result.lines()
    assert first.startswith("validation loss ") and len(of_sources) == 2
    assert of_sources[1].startswith(f"  {files[1]}, 25%: {chinese.loss:.4f} nats per token, ")


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte(small):
    corpus = replace(prepare(small.data, small.model.vocab_size), lossy="'A' becomes 'a'")
    result = evaluate(seeded(0, small.model), corpus, small, torch.device("cpu"))
    assert result is not None and result.bits_per_byte is None and result.loss > 5
    assert "no bits per byte (the tokenizer loses text)" in result.lines()[0]


def test_it_ends_early_when_the_run_is_stopped(small):
    corpus = prepare(small.data, small.model.vocab_size, report=lambda line: None)
    model = seeded(0, small.model)
    is_stopped = iter([False, False, True])  # asked before each batch
    stopped = partial(next, is_stopped, True)
    assert evaluate(model, corpus, small, torch.device("cpu"), stopped) is None
    assert model.training
