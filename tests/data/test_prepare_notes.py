"""What a preparation says about the text: what was read, what was not, and what to beware of."""

import json
from dataclasses import replace

import tokenizers

from moebius.data import prepare
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
    monkeypatch.setattr("moebius.data.ingest.BATCH_CHARACTERS", 100)
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
