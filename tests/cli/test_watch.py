"""Tests of `moebius watch`."""

import pytest

from tests.cli.command_line import refused
from tests.report.made_up_run import write_run


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ((), 2, "RUN is missing"),
        (("nowhere",), 4, "nowhere: there is no such directory"),
        (("nowhere", "--web"), 4, "nowhere: there is no such directory"),
        (("run", "--port", "80"), 2, "--port is for --web"),
        (("run", "--web", "--once"), 2, "--once is for the terminal"),
        (("run", "--web", "--port", "70000"), 2, "--port 70000: must be between 0 and 65535"),
    ],
)
def test_what_is_refused(words, code, part, tmp_path, moebius, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    refused(moebius("watch", *words), code, part)


@pytest.mark.parametrize("flags", [(), ("--once",)])
def test_a_finished_run_without_a_terminal(flags, tmp_path, moebius):
    result = moebius("watch", write_run(tmp_path / "run"), *flags)
    assert result.code == 0 and not result.err
    assert result.out.splitlines()[-1].startswith("run: finished  step 20/20  loss 2.200")
