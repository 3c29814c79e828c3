"""The facts about its text that a corpus offers to training and evaluation."""

import pytest

from moebius.data import prepare
from tests.data.corpora import configure, configure_mixture, texts


def test_documents_are_kept_apart_by_the_end_of_text(source):
    corpus = prepare(configure(source), 257)
    assert corpus.separator == corpus.tokenizer.end_of_text
    tokens = corpus.train.read(0, len(corpus.train))
    assert (tokens == corpus.separator).sum() == corpus.train.num_documents


def test_without_document_masking_there_is_no_separator(source):
    corpus = prepare(configure(source, document_masking=False), 257)
    assert corpus.separator is None
    assert corpus.identity == prepare(configure(source), 257).identity


def test_bytes_per_token_count_separators_as_tokens(source):
    corpus = prepare(configure(source), 257)
    num_bytes = sum(len(text.encode()) for text in texts(corpus, corpus.val))
    num_tokens = num_bytes + corpus.val.num_documents
    assert corpus.val_bytes_per_token == num_bytes / num_tokens


def test_bytes_per_token_of_a_mixture_are_the_mean_by_weight(source):
    corpus = prepare(configure_mixture(source, tokenizer="bpe"), 300)
    ratios = [part.num_bytes / (part.stop - part.start) for part in corpus.val.parts]
    expected = 0.5 * ratios[0] + 0.3 * ratios[1] + 0.2 * ratios[2]
    assert corpus.val_bytes_per_token == pytest.approx(expected)


def test_the_summary_is_one_line_with_all_sizes(source):
    with source.open("a") as file:
        file.write("nonsense\n{}\n")
    corpus = prepare(configure_mixture(source, errors="skip"), 257)
    train, val = corpus.train, corpus.val
    assert corpus.summary() == (
        f"{len(train):,} training tokens in {train.num_documents} documents, "
        f"{len(val):,} held-out tokens in {val.num_documents}; "
        f"257 token ids, {corpus.val_bytes_per_token:.2f} bytes per token, "
        "3 sources, 2 documents left out"
    )
    assert corpus.folder == corpus.folders[0]
