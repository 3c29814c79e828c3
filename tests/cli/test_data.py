"""Tests of `moebius data`."""

from pathlib import Path

from tests.cli.command_line import micro, refused


def test_data_is_prepared_ahead_and_then_found(tmp_path, moebius):
    flags = micro(tmp_path)
    first, second = moebius("data", "tiny", *flags), moebius("data", "tiny", *flags)
    assert first.code == second.code == 0
    assert "preparing" in first.out and "preparing" not in second.out
    assert first.out.splitlines()[-2:] == second.out.splitlines()[-2:]
    assert Path(second.out.splitlines()[-1]).is_dir() and not (tmp_path / "runs").exists()


def test_a_configuration_that_cannot_run(tmp_path, moebius):
    flags = micro(tmp_path, data__source=tmp_path / "gone.txt")
    refused(moebius("data", "tiny", *flags), 3, "gone.txt': no such file, folder or glob")
