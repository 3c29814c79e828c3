"""Shards are written without truncating anything, and a bad meta.json is named."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from moebius.data.sealed import read_sealed, write_sealed
from moebius.data.shards import META, Meta, ShardWriter, token_dtype
from moebius.data.stream import open_split
from moebius.data.tally import Tally
from moebius.errors import DataError

END = 0


def write(
    folder: Path, documents: list[list[int]], vocab_size: int = 1000, shard_tokens: int = 7
) -> np.ndarray:
    """Write the documents as the split `train` and return the tokens expected in it."""
    with ShardWriter(folder, "train", vocab_size, shard_tokens) as writer:
        for ids in documents:
            tokens = np.array([END, *ids], dtype=writer.dtype)
            writer.append(tokens.tobytes(), 1, num_bytes=10 * len(ids))
        split = writer.finish()
    (folder / "tokenizer.json").write_bytes(b"")
    sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    splits = {"train": split}
    Meta(
        dtype=writer.dtype.name,
        vocab_size=vocab_size,
        end_of_text=END,
        tokenizer_sha256=sha256_of_nothing,
        tally=Tally(),
        held_out_below=0.01,
        lossy="",
        splits=splits,
    ).write(folder)
    return np.array([token for ids in documents for token in (END, *ids)])


def some_documents(highest: int = 999) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(1, highest + 1, size).tolist() for size in (3, 0, 20, 1, 6)]


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "width"), [(65_536, "uint16", 2), (65_537, "uint32", 4)]
)
def test_a_token_takes_as_few_bytes_as_the_vocabulary_allows(tmp_path, vocab_size, dtype, width):
    write(tmp_path, [[1, vocab_size - 1, 2]], vocab_size)
    assert token_dtype(vocab_size).name == dtype
    assert json.loads((tmp_path / META).read_text())["dtype"] == dtype
    assert (tmp_path / "train-00000.bin").stat().st_size == 4 * width
    assert open_split(tmp_path, "train").read(0, 4).tolist() == [END, 1, vocab_size - 1, 2]


def test_a_writer_continues_where_another_was_synced(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    documents = [np.arange(size, dtype="<u2").tobytes() for size in (9, 4, 30, 2, 5, 11)]
    with ShardWriter(tmp_path / "whole", "train", 1000, 7) as writer:
        for ids in documents:
            writer.append(ids, 1, 3)
        expected = writer.finish()
    first = ShardWriter(tmp_path / "halves", "train", 1000, 7)
    for ids in documents[:3]:
        first.append(ids, 1, 3)
    first.sync()
    synced = copy.deepcopy(first.split)
    first.append(documents[0], 1, 3)  # written, but not part of the split that is continued
    first.sync()
    with ShardWriter(tmp_path / "halves", "train", 1000, 7, split=synced) as writer:
        for ids in documents[3:]:
            writer.append(ids, 1, 3)
        assert writer.finish() == expected
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "halves" / file.name).read_bytes()


def test_a_meta_json_that_cannot_be_used_is_named(tmp_path):
    write(tmp_path, some_documents())
    path = tmp_path / META
    good = read_sealed(path)
    outside = read_sealed(path)
    outside["splits"]["train"]["shards"][0]["file"] = "../elsewhere.bin"
    without_tally = {name: value for name, value in good.items() if name != "tally"}
    for contents, expected in (
        ("", "not readable"),
        ("[]", "not readable"),
        ("{}", "not readable"),
        (json.dumps(good), "its checksum differs"),
        (good | {"dtype": "uint32"}, "dtype uint32, but 1000 ids are stored as uint16"),
        (good | {"version": 1}, "has format 1, but this Moebius reads"),
        (without_tally, "not readable"),
        (good | {"splits": {"train": 3}}, "not readable"),
        (outside, "a shard outside the folder"),
        (good | {"splits": {}}, "no split 'train'"),
    ):
        if isinstance(contents, str):
            path.write_text(contents)
        else:
            write_sealed(path, contents)
        with pytest.raises(DataError) as caught:
            open_split(tmp_path, "train")
        assert expected in str(caught.value)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"meta\.json: not readable"):
        open_split(tmp_path, "train")


def test_figures_that_were_changed_in_meta_json_are_refused(tmp_path):
    write(tmp_path, some_documents())
    path = tmp_path / META
    good = path.read_text()
    for changed in (
        good.replace('"bytes": 300', '"bytes": 600'),
        good.replace('"documents": 5', '"documents": 6'),
        good.replace('"lossy": ""', '"lossy": "x"'),
        good.replace('"held_out_below": 0.01', '"held_out_below": 0.02'),
    ):
        assert changed != good
        path.write_text(changed)
        with pytest.raises(
            DataError, match=r"meta\.json: not readable .*checksum differs.*delete"
        ):
            open_split(tmp_path, "train")
    path.write_text(good)
    assert open_split(tmp_path, "train").num_bytes == 300
