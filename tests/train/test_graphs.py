"""Passes as CUDA graphs train exactly as passes without them.

On a CPU, a stand-in for a graph runs the function again whose kernels a graph would repeat, with
the same tensors. What the stand-in cannot show is tested on a GPU.
"""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.hardware.backends import backends_for
from moebius.model.transformer import routed_layers, seeded
from moebius.parallel.layout import lay_out
from moebius.parallel.process import Process
from moebius.train import graphs
from moebius.train.actions import nudge_bias, revive
from moebius.train.graphs import WARM_UP, GraphedPasses
from moebius.train.state import TrainState, model_tensors
from moebius.train.step import Pass, StepResult, train_step
from tests.train import test_step

# Flex attention has blocks of 128 tokens.
E, B, S = 4, 8, 128 if torch.cuda.is_available() else 16
STEPS = WARM_UP + 5
VARIANTS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "four passes": {"micro_batches": 4},
    "counts of the whole batch": {"micro_batches": 4, "aux_loss_scope": "global_batch"},
    "one pass over the whole batch": {"aux_loss_scope": "global_batch"},
    "bias and z-loss": {
        "micro_batches": 2,
        "router_bias_rate": 0.01,
        "router_z_loss_coeff": 0.1,
        "router_top_k": 2,
        "router_score": "sigmoid",
    },
    "switch": {"router_type": "switch", "micro_batches": 2},
    "multi-token prediction": {"use_mtp": True, "micro_batches": 2, "num_experts": [4, 0]},
    "muon": {"optimizer": "muon"},
    "dense": {"num_experts": 0, "base_expansion": 2.0},
}


def config_of(
    micro_batches: int = 1, optimizer: Any = "adamw", compile: Any = "off", **changes: Any
) -> Config:
    train: dict[str, Any] = {
        "steps": 100,
        "batch_size": B,
        "micro_batch_size": B // micro_batches,
        "seq_len": S,
        "warmup_steps": 5,
        "lr": 1e-2,
        "optimizer": optimizer,
    }
    changes = {"num_experts": E, "aux_loss_coeff": 0.01} | changes
    config = test_step.config_of(train=train, **changes)
    return replace(config, parallel=ParallelConfig(cuda_graphs="on", compile=compile))


def tokens_of(config: Config, seed: int, device: str) -> Tensor:
    length = config.train.seq_len + (4 if config.model.use_mtp else 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        config.model.vocab_size, (config.train.batch_size, length), generator=generator
    ).to(device)


class Rerun:
    """A stand-in for a CUDA graph: runs a pass again, with its results in the same memory."""

    def __init__(self, run: Any, parameters: list[torch.nn.Parameter]):
        self.run, self.parameters = run, parameters
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        counts = inspect.getclosurevars(run).nonlocals["static"].balancing.over_batch
        sum_X = None if counts is None else counts.sum_X
        sum_before_X = None if sum_X is None else sum_X.clone()
        self.result = run()
        if sum_X is not None and sum_before_X is not None:  # capturing computes nothing
            sum_X.copy_(sum_before_X)
        self.is_first = all(gradient is None for gradient in before)
        self.gradients = [p.grad for p in parameters]
        for gradient, values in zip(self.gradients, before, strict=True):
            if gradient is not None:
                gradient.copy_(torch.nan * gradient if values is None else values)

    def replay(self) -> None:
        if self.is_first:
            for parameter in self.parameters:
                parameter.grad = None
        _, figures = self.run()
        self.result[1].copy_(figures)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if self.is_first and gradient is not None and parameter.grad is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient


def use_stand_ins(monkeypatch: pytest.MonkeyPatch, state: TrainState) -> None:
    """Let a CPU have graphs of a state's passes."""
    parameters = list(state.model.parameters())

    def captured(run: Any, after: Any) -> tuple[Any, Any]:
        graph = Rerun(run, parameters)
        return graph.result, graph

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "_obstacle", lambda *_: "")
    monkeypatch.setattr(graphs, "_timed", lambda run: (run(), 9.0, 10.0))


class Trained:
    """A state, and its steps with or without graphs."""

    def __init__(self, config: Config, device: str, uses_graphs: bool, monkeypatch: Any):
        self.config, self.device, self.lines = config, device, []
        model = seeded(0, config.model, backends_for(config, torch.device(device))).to(device)
        if device == "cuda":
            lay_out(model, config.parallel, torch.device(device))
        self.state = TrainState.new(model, config)
        if uses_graphs and device == "cpu":
            use_stand_ins(monkeypatch, self.state)
        self.passes = GraphedPasses(config, torch.device(device), self.lines.append)
        self.run = self.passes if uses_graphs else None

    def step(self, train: TrainConfig | None = None, spoil: bool = False) -> StepResult:
        train = train or self.config.train
        config = replace(self.config, train=train)
        tokens_BL = tokens_of(config, self.state.step, self.device)
        separator = 3 if self.config.data.document_masking else None
        embedding = self.state.model.embedding.weight
        kept = embedding.detach().clone()
        if spoil:
            embedding.data[tokens_BL[0, 0]] = torch.nan
        result = train_step(self.state, tokens_BL, separator, train, run=self.run)
        if spoil:
            embedding.data.copy_(kept)
        return result


def both(config: Config, device: str, monkeypatch: Any) -> tuple[Trained, Trained]:
    """Return the same run with and without graphs."""
    return (
        Trained(config, device, True, monkeypatch),
        Trained(config, device, False, monkeypatch),
    )


def assert_equal(ours: Any, expected: Any) -> None:
    """Assert that all tensors in two nested tuples have the same bits."""
    if isinstance(expected, Tensor):
        assert ours.dtype == expected.dtype and ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, list | tuple):
        for value, figure in zip(ours, expected, strict=True):
            assert_equal(value, figure)
    else:
        assert ours == expected


def assert_same_steps(runs: tuple[Trained, Trained], steps: int = STEPS, **how: Any) -> StepResult:
    results: list[StepResult] = []
    for _ in range(steps):
        ours, expected = (run.step(**how) for run in runs)
        assert_equal(ours, expected)
        results.append(ours)
    assert_same_weights(runs)
    return results[-1]


def assert_same_weights(runs: tuple[Trained, Trained]) -> None:
    ours, expected = (model_tensors(run.state.model) for run in runs)
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_train_as_without_graphs(variant, device, monkeypatch):
    config = config_of(**VARIANTS[variant])
    runs = both(config, device, monkeypatch)
    kept = [runs[0].step(), runs[1].step()]
    before = [result.loss.clone() for result in kept]
    assert_same_steps(runs)
    # the result of a step is not that of a later one
    assert_equal([result.loss for result in kept], before)
    several = config.train.accumulation_steps > 1
    assert runs[0].passes._graphs.keys() == ({True, False} if several else {True})
    assert len(runs[0].lines) == 1 and runs[0].lines[0].startswith("CUDA graphs: on (asked for")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_changes_between_steps_is_followed(micro_batches, device, monkeypatch):
    """Skipped steps, alarms that act, rates, evaluation, and weights that are loaded."""
    runs = both(config_of(micro_batches), device, monkeypatch)
    assert_same_steps(runs)
    assert assert_same_steps(runs, steps=2, spoil=True).is_skipped
    for run in runs:
        run.state.aux_levels[0] = 3
        layer = routed_layers(run.state.model)[0]
        nudge_bias(layer, [5, 0, 9, 2])
        revive(layer, 1, 2, run.state.optimizers, seed=4)
    assert_same_steps(runs, steps=2)
    nats = []
    for run in runs:
        run.state.model.eval()
        nats.append(run.state.model.token_losses(tokens_of(run.config, 99, device)))
        run.state.model.train()
    assert_equal(*nats)
    assert_same_steps(runs, steps=2)
    for run in runs:  # as a roll-back does
        fresh = model_tensors(seeded(1, run.config.model))
        for name, tensor in model_tensors(run.state.model).items():
            tensor.copy_(fresh[name])
    assert_same_steps(runs, steps=2)
    assert not runs[0].passes._is_off


@pytest.mark.parametrize("device", DEVICES)
def test_a_phase_with_other_shapes_has_graphs_of_its_own(device, monkeypatch):
    runs = both(config_of(2), device, monkeypatch)
    assert_same_steps(runs)
    other = replace(runs[0].config.train, batch_size=4, micro_batch_size=2)
    assert_same_steps(runs, train=other)
    assert runs[0].passes._shape[0][0] == 2 and len(runs[0].passes._graphs) == 2
    assert_same_steps(runs, steps=2)  # without graphs again, until the code is warm


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_others_are_added_to_without_a_graph(device, monkeypatch):
    """A later pass whose gradients are not the graph's, as after something replaced them."""
    runs = both(config_of(2), device, monkeypatch)
    assert_same_steps(runs)
    for run in runs:
        for parameter in run.state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
    assert_same_steps(runs, steps=3)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["bias and z-loss", "switch"])
def test_compiled_models_with_masks_of_documents_train_as_without_graphs(variant, monkeypatch):
    runs = both(config_of(**VARIANTS[variant], compile="on"), "cuda", monkeypatch)
    assert runs[0].state.model.backends.attention == "flex"
    assert_same_steps(runs)
    assert runs[0].passes._graphs.keys() == {True, False}


@pytest.mark.gpu
def test_random_numbers_are_those_of_a_run_without_graphs():
    monkeypatch = pytest.MonkeyPatch()
    config = config_of(2, expert_dropout=0.2, router_jitter=0.1)
    losses = []
    for uses_graphs in (True, False):
        run = Trained(config, "cuda", uses_graphs, monkeypatch)
        torch.manual_seed(5)
        losses.append([run.step().loss for _ in range(STEPS)])
    assert_equal(*losses)


@pytest.mark.parametrize(
    ("asked", "lines"),
    [("on", ["CUDA graphs: off (they need a GPU)"]), ("auto", []), ("off", [])],
)
def test_without_a_gpu_there_is_a_line_only_if_graphs_were_asked_for(asked, lines):
    said: list[str] = []
    config = Config(parallel=ParallelConfig(cuda_graphs=asked))
    GraphedPasses(config, torch.device("cpu"), said.append)
    assert said == lines


def test_several_processes_have_none():
    said: list[str] = []
    config = Config(parallel=ParallelConfig(cuda_graphs="on"))
    GraphedPasses(config, torch.device("cuda"), said.append, Process(0, 2))
    assert said == ["CUDA graphs: off (there are several processes)"]


@pytest.mark.parametrize(("host", "is_on"), [(4.0, False), (6.0, True)])
def test_auto_has_graphs_where_the_host_takes_long(host, is_on, monkeypatch):
    config = config_of()
    config = replace(config, parallel=ParallelConfig(cuda_graphs="auto"))
    runs = both(config, "cpu", monkeypatch)
    monkeypatch.setattr(graphs, "_timed", lambda run: (run(), host, 10.0))
    assert_same_steps(runs)
    assert bool(runs[0].passes._graphs) == is_on
    state = "on" if is_on else "off"
    expected = f"CUDA graphs: {state} (launching a pass takes the host {host:.0f} of its 10 ms)"
    assert runs[0].lines == [expected]


@pytest.mark.parametrize("at", ["first", "later"])
def test_what_cannot_be_captured_runs_without_a_graph(at, monkeypatch):
    runs = both(config_of(2), "cpu", monkeypatch)
    working = graphs.captured

    def captured(run: Any, after: Any) -> tuple[Any, Any]:
        if (after is None) == (at == "first"):
            run()[0].total.cpu()  # leaves gradients behind, as what is captured does
            for parameter in runs[0].state.model.parameters():
                if at == "later" and parameter.grad is not None:
                    parameter.grad.copy_(before[parameter])
            raise torch.OutOfMemoryError("no memory left\nmore about it")
        result = working(run, after)
        return result

    before: dict[Any, Tensor] = {}
    first_run = graphs.forward_backward

    def noting(given: Pass) -> Any:
        parameters = given.model.parameters()
        before.update((p, p.grad.clone()) for p in parameters if p.grad is not None)
        return first_run(given)

    monkeypatch.setattr(graphs, "forward_backward", noting)
    monkeypatch.setattr(graphs, "captured", captured)
    assert_same_steps(runs)
    assert runs[0].lines[1:] == ["CUDA graphs: off (no memory left)"]
