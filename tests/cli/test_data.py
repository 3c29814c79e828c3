"""Tests of `moebius data`."""

import gzip
from pathlib import Path

from tests.cli.command_line import micro, refused


def test_data_is_prepared_ahead_and_then_found(tmp_path, moebius):
    flags = micro(tmp_path)
    first, second = moebius("data", "tiny", *flags), moebius("data", "tiny", *flags)
    assert first.code == second.code == 0
    assert "preparing" in first.out and "preparing" not in second.out
    assert first.out.splitlines()[-3:] == second.out.splitlines()[-3:]
    assert Path(second.out.splitlines()[-1]).is_dir() and not (tmp_path / "runs").exists()


def test_a_configuration_that_cannot_run(tmp_path, moebius):
    flags = micro(tmp_path, data__source=tmp_path / "gone.txt")
    refused(moebius("data", "tiny", *flags), 3, "gone.txt': no such file, folder or glob")


def test_data_and_train_say_what_was_read_and_what_was_not(tmp_path, moebius):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(
        gzip.compress(b"".join(b'{"text": "the text %d"}\n' % n * 20 for n in range(99)))
    )
    for name in ("b.png", "c.png"):
        (folder / name).write_bytes(b"\x89PNG\0")
    flags = micro(tmp_path, data__source=folder)
    for command in ("data", "train"):
        result = moebius(command, "tiny", *flags)
        assert result.code == 0
        assert "read 1 file of JSON lines (gzip) (1,980 documents, " in result.out
        assert (
            f"WARNING: most files were passed over: an image: 2 files, such as {folder}/b.png"
            in (result.out)
        )
    assert "WARNING: the text is read" not in result.out


def test_train_warns_of_settings_that_were_hardly_meant(tmp_path, moebius):
    flags = micro(tmp_path, model__vocab_size=2048, train__steps=2, train__warmup_steps=5)
    out = moebius("train", "tiny", *flags).out
    assert "the tokenizer has 257 ids: 1,791 of the model's 2,048 are never used" in out
    assert "train.warmup_steps=5 is not below the run's 2 steps" in out
    assert "WARNING: val_loss rests on " in out
