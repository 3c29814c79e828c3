"""What a preparation says about the text: what was read, what was not, and what to beware of."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from moebius.data import formats, inventory, prepare
from moebius.errors import DataError
from tests.data.corpora import configure, configure_mixture


def test_what_was_read_and_passed_over_is_said_now_and_when_it_is_found_in_the_cache(source):
    (source.parent / "picture.png").write_bytes(b"\x89PNG\0")
    (source.parent / "broken").symlink_to("nowhere")
    config = configure(source, source=str(source.parent))
    first = prepare(config, 257)
    assert first.notes[0].startswith("read 1 file of JSON lines (200 documents, ")
    assert first.notes[1] == (
        "WARNING: most files were passed over: an image: 1 file, "
        f"{source.parent}/picture.png; broken link: 1 file, {source.parent}/broken"
    )
    assert prepare(config, 257).notes == first.notes


def test_each_source_of_a_mixture_says_what_was_read(source):
    notes = prepare(configure_mixture(source), 257).notes
    for name, count in (("rows", 200), ("b", 300), ("c", 100)):
        start = f"{source.with_name(name)}.jsonl: read 1 file of JSON lines ({count} documents, "
        assert any(note.startswith(start) for note in notes)


def test_a_tokenizer_that_loses_text_is_found_out_wherever_it_is(source, tmp_path, monkeypatch):
    """A tokenizer of whole words, to which one word in the middle of the text is unknown."""
    words = {"<|endoftext|>": 0, "[UNK]": 1, "document": 2, "é": 3}
    words |= {str(n): 4 + n for n in range(200) if n != 123}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "words.json"))
    source.write_text("".join(f'{{"text": "document {n} é"}}\n' for n in range(200)))
    monkeypatch.setattr("moebius.data.ingest.BATCH_BYTES", 100)
    monkeypatch.setattr("moebius.data.line_rows.CHUNK_BYTES", 100)
    config = configure(source, tokenizer=str(tmp_path / "words.json"))
    for num_workers in (1, 2):
        config = replace(config, workers=num_workers, cache=str(tmp_path / f"c{num_workers}"))
        for _ in range(2):
            corpus = prepare(config, 300)
            assert corpus.lossy == "'document 123 é' becomes 'document [UNK] é'"
            warning = f"WARNING: the tokenizer loses text ({corpus.lossy}), so there are no bits"
            assert any(note.startswith(warning) for note in corpus.notes)
    source.write_text(source.read_text().replace("123", "122"))
    assert prepare(config, 300).lossy == ""


def test_the_warning_about_a_rough_loss_ends_with_enough_held_out_text(source):
    text = "a word and another " * 1000
    source.write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(30)))
    corpus = prepare(configure(source, val_fraction=0.3), 257)
    assert len(corpus.val) > 10_000
    assert "WARNING" not in " ".join(corpus.notes)


def test_files_are_named_as_they_are_called_after_a_move(source, tmp_path):
    (source.parent / "inner").mkdir()
    (source.parent / "inner" / "picture.png").write_bytes(b"\x89PNG\0")
    (source.parent / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    config = configure(source, source=str(source.parent), errors="skip")
    prepare(config, 257)
    moved = source.parent.rename(tmp_path / "moved")
    notes = prepare(replace(config, source=str(moved)), 257).notes
    assert f"passed over: an image: 1 file, {moved}/inner/picture.png" in notes
    (left_out,) = [note for note in notes if note.startswith("left out 1 document")]
    assert "; the first: bad.jsonl:2: " in left_out
    assert not any(str(source.parent) in note for note in notes)
    (moved / "inner" / "picture.png").unlink()
    (moved / "inner" / "other.png").write_bytes(b"\x89PNG\0")  # another name, the same counts
    notes = prepare(replace(config, source=str(moved)), 257).notes
    assert "passed over: an image: 1 file, inner/picture.png" in notes


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("has_bar", [True, False])
def test_every_file_is_opened_once_to_find_out_what_it_is(source, monkeypatch, tokenizer, has_bar):
    for number in range(5):
        (source.parent / f"{number}.txt").write_text(f"text {number}")
    identified: list[Path] = []

    def identify(path: Path, *arguments):
        identified.append(path)
        return formats.identify(path, *arguments)

    monkeypatch.setattr(inventory, "identify", identify)
    config = configure(source, source=str(source.parent), tokenizer=tokenizer)
    prepare(config, 300, progress=has_bar)
    assert len(identified) == len(set(identified)) == 6


def test_a_file_that_is_replaced_while_it_is_read_is_still_noticed(source, monkeypatch):
    module = sys.modules[prepare.__module__]
    ingest = module.ingest

    def replacing(*arguments, **settings):
        result = ingest(*arguments, **settings)
        source.write_bytes(gzip.compress(source.read_bytes()))
        return result

    monkeypatch.setattr(module, "ingest", replacing)
    with pytest.raises(DataError, match="its files changed while they were read"):
        prepare(configure(source), 257)
