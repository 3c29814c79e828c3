"""Tests of `moebius report`, and of the report that a run ends with."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebius.cli.report import reported
from moebius.config.printable import printable
from moebius.errors import NumericError, StorageError
from moebius.observe.line_file import read_lines
from moebius.train.run_directory import RunDirectory
from tests.cli.command_line import micro, refused
from tests.report.made_up_run import write_run


def test_the_report_of_a_run(trained, tmp_path, moebius):
    result = moebius("report", trained / "runs" / "run", "--out", tmp_path / "page.html")
    assert result.code == 0 and not result.err
    verdict, path = result.out.splitlines()
    assert verdict.startswith(f"{trained / 'runs' / 'run'}: ")
    assert path == f"report: {tmp_path / 'page.html'}"
    assert "<h1>Run run</h1>" in (tmp_path / "page.html").read_text("utf-8")


def test_several_runs_are_compared_and_a_run_given_twice_counts_once(trained, tmp_path, moebius):
    run = trained / "runs" / "run"
    for runs in ((run, run), (run, run.parent / "." / "run")):
        result = moebius("report", *runs, "--out", tmp_path / "page.html")
        assert result.code == 0 and "<h1>Run run</h1>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ((), 2, "RUN is missing"),
        (("nowhere",), 4, "nowhere: there is no such directory"),
        ((".",), 4, ".: not a run directory, there is no config.toml in it"),
        (("--run", "x"), 2, "--run: RUN has no flag and comes first, as in `moebius report x`"),
        ((".", "--out", "page"), 2, "--out page: the file's name must end with .html"),
        ((".", "--out", "/nowhere/at/all.html"), 6, "/nowhere/at is not a directory"),
        ((".", "--train.lr", "3"), 2, "--train.lr: unknown option"),
    ],
)
def test_what_is_refused(words, code, part, moebius, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(moebius("report", *words), code, part)


def test_the_name_of_a_run_cannot_control_the_terminal(tmp_path, moebius, trained):
    evil = tmp_path / "a\x1b[31m<b>"
    evil.symlink_to(trained / "runs" / "run")
    result = moebius("report", evil, "--out", tmp_path / "page.html")
    assert result.code == 0 and "\x1b" not in result.out
    assert printable(str(evil)) in result.out
    assert "<b>" not in (tmp_path / "page.html").read_text("utf-8").split("<script")[0]


def session(root, writes: bool = True, check_owned: Any = lambda: None) -> Any:
    """Return the session of a run, as far as its report needs it."""
    return SimpleNamespace(
        check_owned=check_owned,
        run=RunDirectory(root),
        state=SimpleNamespace(step=0),
        device=torch.device("cpu"),
        process=SimpleNamespace(writes=writes, world_size=1),
    )


def test_a_run_ends_with_the_path_of_its_report(tmp_path, moebius):
    result = moebius("train", "tiny", *micro(tmp_path, train__name="run"))
    assert result.code == 0 and not result.err
    run = tmp_path / "runs" / "run"
    verdict, path = result.out.splitlines()[-2:]
    assert (
        verdict.startswith("verdict:       ") and path == f"report:        {run / 'report.html'}"
    )
    html = (run / "report.html").read_text("utf-8")
    assert "<h2>Samples</h2>" in html and "<h2>Environment</h2>" in html
    more = moebius("resume", run, "--train.steps", "12")
    assert more.out.splitlines()[-1] == path
    assert [line["step"] for line in read_lines(run / "samples.jsonl")] == [5, 10, 12]
    assert [line["step"] for line in read_lines(run / "environment.jsonl")] == [0, 10]


@pytest.mark.parametrize("error", [NumericError("it diverged"), KeyboardInterrupt()])
def test_a_run_that_fails_has_a_report_and_fails_as_before(tmp_path, capsys, error):
    run = write_run(tmp_path / "run")
    with pytest.raises(type(error)) as raised, reported(session(run)):
        raise error
    assert raised.value is error
    assert f"report:        {run / 'report.html'}" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_a_line(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "report.html").mkdir()
    (run / "environment.jsonl").mkdir()
    with reported(session(run)):
        pass
    out, err = capsys.readouterr()
    assert not out
    first, second = err.splitlines()
    assert first.startswith("moebius: the machine is not recorded: ")
    assert second.startswith("moebius: no report: ") and "report.html" in second


def test_a_folder_that_is_gone_does_not_change_how_the_run_ends(tmp_path, capsys):
    with pytest.raises(NumericError), reported(session(tmp_path / "gone")):
        raise NumericError("lost")
    assert "no report: " in capsys.readouterr().err


def test_nothing_is_written_into_what_is_there_instead_of_the_run(tmp_path, capsys):
    def lost():
        raise StorageError("it was moved")

    run = write_run(tmp_path / "run")
    with reported(session(run, check_owned=lost)):
        pass
    assert capsys.readouterr().err == "moebius: no report: it was moved\n"
    assert not (run / "report.html").exists()


def test_a_run_that_ends_because_it_was_moved_says_so_once(tmp_path, capsys):
    def lost():
        raise StorageError("it was moved")

    run = write_run(tmp_path / "run")
    with (
        pytest.raises(StorageError, match="moved"),
        reported(session(run, check_owned=lost)),
    ):
        lost()
    assert capsys.readouterr() == ("", "") and not (run / "report.html").exists()


def test_a_process_that_does_not_write_reports_nothing(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    with reported(session(run, writes=False)):
        pass
    assert capsys.readouterr() == ("", "") and not (run / "report.html").exists()
