"""The facts about its text that a corpus offers to training and evaluation."""

import json

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


def test_bytes_per_token_are_those_of_all_text_and_count_separators_as_tokens(source):
    long = "a long document " * 50  # about half of all text
    with source.open("a") as file:
        file.write(json.dumps({"text": long}) + "\n")
    for corpus in (
        prepare(configure(source), 257),
        prepare(configure_mixture(source, tokenizer="bpe"), 300),
    ):
        everything = [*texts(corpus, corpus.train), *texts(corpus, corpus.val)]
        num_bytes = sum(len(text.encode()) for text in everything)
        num_tokens = len(corpus.train) + len(corpus.val)
        assert corpus.bytes_per_token == num_bytes / num_tokens
        assert corpus.bytes_per_token != corpus.val.num_bytes / len(corpus.val)


def test_the_summary_has_no_plural_for_one(source):
    source.write_text('{"text": "ab"}\n{"text": "abc"}\nnonsense\n')
    corpus = prepare(configure(source, errors="skip"), 257)
    assert " training tokens in 1 document, " in corpus.summary()
    assert corpus.summary().endswith(", 1 document left out")
    assert any("tokens in 1 held-out document and is only" in note for note in corpus.notes)


def test_the_summary_is_one_line_with_all_sizes(source):
    with source.open("a") as file:
        file.write("nonsense\n{}\n")
    corpus = prepare(configure_mixture(source, errors="skip"), 257)
    train, val = corpus.train, corpus.val
    assert corpus.summary() == (
        f"{len(train):,} training tokens in {train.num_documents} documents, "
        f"{len(val):,} held-out tokens in {val.num_documents}; "
        f"257 token ids, {corpus.bytes_per_token:.2f} bytes per token, "
        "3 sources, 2 documents left out"
    )
    assert corpus.folder == corpus.folders[0]
