"""The command line as a function, and a run that is trained once for all tests of this folder."""

from pathlib import Path

import pytest

from moebius import cli
from tests.cli.command_line import Call, Result, micro


@pytest.fixture
def moebius(capsys) -> Call:
    """The command line in this process, because starting a process costs seconds."""

    def call(*words: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a trained run, `runs/run`, ten steps long. Tests leave that run as it is."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "tiny", *micro(folder, train__name="run")])
    assert not ended.value.code
    return folder
