"""Tests of whole ablations: variants in separate processes, in turns, with failures."""

import json

import pytest

from moebius.ablate.ablation import AblateOptions
from moebius.ablate.json_text import as_json
from moebius.ablate.run import ablate
from moebius.ablate.tables import lines
from moebius.ablate.variants import variants
from moebius.cli import main
from moebius.config.files import to_toml


def silent(line: str) -> None:
    """Ignore a line of progress."""


@pytest.mark.heavy
def test_variants_run_in_turns_and_learn_on_the_same_text(few, workers):
    compared = variants(few, ["model.base_expansion=0,2"], twin=True)
    options = AblateOptions(seconds=1.0, rounds=3, learn=8, seeds=2)
    ablation = ablate(compared, options, silent)
    assert [outcome.problem for outcome in ablation.outcomes] == ["", "", ""]
    for outcome in ablation.outcomes:
        assert len(outcome.rounds) == 3 and outcome.peak_bytes > 1e6
        assert len(outcome.curves) == 2
        assert [point.step for point in outcome.curves[0]] == [1, 2, 3, 4, 6, 7, 8]
        assert outcome.curves[0][-1].loss < outcome.curves[0][0].loss
    text = "\n".join(lines(ablation))
    assert "held-out bits per byte after so many tokens, mean of 2 seeds" in text
    assert "against its twin" in text and "comes on top" in text
    values = json.loads(as_json(ablation))
    assert [len(variant["rounds"]) for variant in values["variants"]] == [3, 3, 3]
    assert values["variants"][1]["equal_tokens"]["tokens"] == 8 * 4 * 32
    assert len(workers) == 6 and all(worker.process.poll() is not None for worker in workers)


@pytest.mark.heavy
def test_the_same_seed_learns_the_same_whatever_runs_beside_it(few):
    options = AblateOptions(seconds=0.1, rounds=3, learn=4)
    curves = [
        ablate(variants(few, [f"model.num_experts={count}"]), options, silent).outcomes[0].curves
        for count in (3, 2)
    ]
    assert curves[0] == curves[1]


def test_a_variant_that_cannot_be_built_is_a_row_that_says_why(few):
    compared = variants(few, ["model.router_top_k=1,7"])
    ablation = ablate(compared, AblateOptions(seconds=0.1, rounds=3), silent)
    assert not ablation.outcomes[0].problem
    assert "router_top_k" in ablation.outcomes[1].problem
    assert any("router_top_k" in line for line in lines(ablation)[:3])


@pytest.mark.heavy
def test_a_worker_that_is_killed_is_a_row_that_says_so(few, workers):
    def kill_the_second(line: str) -> None:
        if line.startswith("round 2"):
            workers[1].process.kill()

    compared = variants(few, ["model.num_experts=2"])
    ablation = ablate(compared, AblateOptions(seconds=0.1, rounds=4), kill_the_second)
    assert not ablation.outcomes[0].problem and len(ablation.outcomes[0].rounds) == 4
    assert "killed by SIGKILL" in ablation.outcomes[1].problem


@pytest.mark.heavy
def test_an_interrupt_leaves_no_process_behind(few, workers):
    def interrupt(line: str) -> None:
        if line.startswith("round 2"):
            raise KeyboardInterrupt

    compared = variants(few, ["model.num_experts=2"])
    ablation = ablate(compared, AblateOptions(seconds=0.1, rounds=3), interrupt)
    assert [len(outcome.rounds) for outcome in ablation.outcomes] == [1, 1]
    assert ablation.stopped() == "stopped by SIGINT; the figures are those of 1 round"
    assert any("1 rounds in turns" in line for line in lines(ablation))
    assert len(workers) == 2 and all(worker.process.poll() is not None for worker in workers)


def run(*arguments: str) -> int | str | None:
    """Return the exit code of `moebius ablate`."""
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", *arguments])
    return stopped.value.code


def test_the_command(few, tmp_path, capsys):
    file = tmp_path / "few.toml"
    file.write_text(to_toml(few))
    flags = ["--over", "train.batch_size=2", "--seconds", "0.2", "--rounds", "3", "--json"]
    assert run(str(file), *flags) == 0
    values = json.loads(capsys.readouterr().out)
    assert [variant["name"] for variant in values["variants"]] == ["as given", "batch_size=2"]
    assert values["variants"][1]["tokens_per_second"] > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--over", "model.dims=3"], "model.dim"),
        (["--over", "model.dim=3,x"], "'x'"),
        (["--over", "observe.progress=true"], "observe"),
        (["--over", "model.dim"], "model.dim"),
        (["--rounds", "few"], "--rounds"),
        (["nothing.toml"], "nothing.toml"),
    ],
)
def test_bad_input_is_one_line(arguments, part, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and part in error
