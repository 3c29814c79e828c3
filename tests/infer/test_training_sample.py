"""The texts that a model writes while it is trained."""

from dataclasses import replace

import pytest
import torch

import moebius
from moebius.infer.training_sample import TrainingSamples, sharing
from moebius.observe.json_lines import SAMPLES
from moebius.observe.line_file import read_lines
from moebius.observe.terminal import Terminal
from moebius.parallel.compile import compile_parts
from moebius.train.loop import train
from tests.train.runs import new_session, newest_tensors


def with_tokens(config, count: int):
    return replace(config, observe=replace(config.observe, sample_tokens=count))


def run_with_samples(config, name: str):
    """Train a run whose model writes texts, unless it may write no token; return its session."""
    session = new_session(config, name=name)
    samples = TrainingSamples(session) if config.observe.sample_tokens else None
    train(session, Terminal(12, progress=False), sampler=samples)
    return session


@pytest.mark.parametrize("router", ["softmax_topk", "switch", "sigmoid"])
def test_a_run_has_a_text_of_each_evaluation_and_learns_the_same(small, router):
    base = 0 if router != "sigmoid" else 1
    model = replace(small.model, router_type=router, base_expansion=base, use_mtp=True)
    small = replace(small, model=model)
    session = run_with_samples(with_tokens(small, 7), "with")
    lines = read_lines(session.run.root / SAMPLES)
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert all(0 < len(line["text"].encode()) <= 7 * 3 for line in lines)  # 3 bytes for U+FFFD
    without = run_with_samples(with_tokens(small, 0), "without")
    assert not (without.run.root / SAMPLES).exists()
    ours, theirs = newest_tensors(session), newest_tensors(without)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_text_is_that_of_the_checkpoint(small):
    session = run_with_samples(with_tokens(small, 20), "run")
    samples = TrainingSamples(session)
    text = read_lines(session.run.root / SAMPLES)[-1]["text"]
    again = samples()
    assert again is not None and again.text == text
    assert moebius.load(session.run.root, device="cpu").generate("", max_tokens=20) == text


def test_the_weights_are_not_copied(small):
    session = new_session(small)
    model = session.state.model
    view = sharing(model, session.config, session.device)
    ours, theirs = model.state_dict(), view.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert not view.training and model.training


def test_weights_that_are_not_finite_write_nothing(small):
    session = new_session(small)
    with torch.no_grad():
        session.state.model.embedding.weight.fill_(torch.nan)
    samples = TrainingSamples(session)
    assert samples() is None and samples.latest is None


def test_writing_stops_with_the_run(small):
    session = new_session(small)
    asked = []
    samples = TrainingSamples(session)
    assert samples(lambda: bool(asked.append(0)) or len(asked) == 3) is None
    assert len(asked) == 3 and samples.latest is None


def test_python_is_asked_for_python(small):
    library = replace(small, data=replace(small.data, source="python-stdlib"))
    session = replace(new_session(with_tokens(small, 3)), config=with_tokens(library, 3))
    sample = TrainingSamples(session)()
    assert sample is not None and sample.prompt == "def " and sample.text.startswith("def ")


@pytest.mark.heavy
def test_a_compiled_model_writes_without_being_compiled_again(small):
    import torch._dynamo

    session = new_session(with_tokens(small, 5))
    compile_parts(session.state.model)
    torch._dynamo.utils.counters.clear()
    sample = TrainingSamples(session)()
    assert sample is not None and sample.text
    assert torch._dynamo.utils.counters["frames"] == {}
