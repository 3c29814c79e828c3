"""The default alarms in layers with 1, 2, 64 and 512 experts, healthy and faulty.

The tokens of a healthy layer are routed at random by real routers, and its figures are measured.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.config.observe import ObserveConfig
from moebius.moe.load import variation
from moebius.moe.router import Router
from moebius.moe.statistics import layer_stats
from moebius.observe.alarm import Alarm, together
from moebius.observe.alarms import Alarms
from moebius.observe.metrics import LayerMetrics, StepMetrics, layer_metrics
from tests.observe.made_up import dense_metrics
from tests.observe.rules import Where, where

TOKENS = 2_048
ROUTERS: dict[str, dict[str, Any]] = {
    "top-1": {},
    "top-4": {"router_top_k": 4},
    "every expert": {"router_top_k": 512},
    "top-4 of sigmoids": {"router_top_k": 4, "router_score": "sigmoid"},
    "switch": {"router_type": "switch"},
    "sigmoid": {"router_type": "sigmoid", "base_expansion": 1.0},
}


def router_of(num_experts: int, **changes: Any) -> Router:
    """Return a router, with at most as many experts per token as there are."""
    k = min(num_experts, changes.pop("router_top_k", 1))
    return Router(ModelConfig(num_experts=num_experts, router_top_k=k, **changes), num_experts)


def measured(router: Router, logits_TE: Tensor, gradient: float | None = None) -> LayerMetrics:
    """Return the figures of a layer with these logits.

    gradient: the norm of the router's gradient. None is one that training gives: zero for the
    constant gate of a single expert, and 0.01 otherwise.
    """
    stats = layer_stats(router, router.route(logits_TE), groups=1)
    if gradient is None:
        is_constant = router.num_experts == 1 and not router.config.has_sigmoid_scores
        gradient = 0.0 if is_constant else 0.01
    return layer_metrics(stats, gradient, 1.0, 1.0)


def fired(steps: Iterator[StepMetrics]) -> set[Where]:
    """Return what the default alarms are about in these steps."""
    alarms = Alarms(ObserveConfig())
    return {where(alarm) for metrics in steps for alarm in alarms.look(metrics)}


def steps_of(
    layers_at: Callable[[int], list[LayerMetrics]], log_every: int, steps: int
) -> Iterator[StepMetrics]:
    for step in range(log_every, steps + 1, log_every):
        yield replace(dense_metrics(step=step, grad_norm=1.0), layers=layers_at(step))


def drawn(num_experts: int, seed: int, tokens: int = TOKENS) -> Tensor:
    """Return the logits of a router that is almost untrained."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(tokens, num_experts, generator=generator)


# healthy layers


HEAVY_512 = pytest.param(512, marks=pytest.mark.heavy)


@pytest.mark.parametrize("num_experts", [1, 2, 64, HEAVY_512])
@pytest.mark.parametrize("name", ROUTERS)
def test_no_alarm_fires_on_a_random_load(name, num_experts):
    """Every 100th step is logged, so any logged step beyond a threshold outlasts the patience."""
    # With an expert of its own for each of a token's slots, there is no noise.
    steps = 100 if num_experts == 512 and name in ("every expert", "sigmoid") else 1_400
    router = router_of(num_experts, **ROUTERS[name])

    def layers_at(step: int) -> list[LayerMetrics]:
        return [measured(router, drawn(num_experts, seed=step))]

    assert fired(steps_of(layers_at, 100, steps)) == set()


@pytest.mark.parametrize("tokens", [TOKENS, 65_536])
@pytest.mark.parametrize("num_experts", [1, 2, 3, 10, 64, 128, 512, 2_048])
@pytest.mark.parametrize("is_even", [True, False])
def test_no_alarm_fires_on_counts_that_chance_gives(num_experts, tokens, is_even):
    generator = torch.Generator().manual_seed(0)
    names = ("routing_entropy", "router_grad_norm", "experts_per_token")
    healthy: dict[str, Any] = dict.fromkeys(names, 1.0)
    if num_experts == 1:
        healthy |= {"routing_entropy": 0.0, "router_grad_norm": 0.0}

    def layers_at(step: int) -> list[LayerMetrics]:
        expert_T = torch.randint(num_experts, (tokens,), generator=generator)
        if is_even:
            expert_T = torch.arange(tokens) % num_experts
        counts = expert_T.bincount(minlength=num_experts)
        cv = (counts.double().std(correction=0) / counts.double().mean()).item()
        return [LayerMetrics(tokens_per_expert=counts.tolist(), cv=cv, **healthy)]

    assert fired(steps_of(layers_at, log_every=100, steps=3_000)) == set()


def test_layers_of_different_sizes_and_a_layer_with_three_passes_are_judged_on_their_own():
    """The MTP layer counts each token three times."""
    experts, tokens = (1, 0, 2, 512, 64), (TOKENS, 0, TOKENS, TOKENS, 3 * TOKENS)
    routers = [router_of(count) if count else None for count in experts]

    def layers_at(step: int, kill: bool = False) -> list[LayerMetrics]:
        layers = []
        for router, count in zip(routers, tokens, strict=True):
            if router is None:
                layers.append(LayerMetrics())
                continue
            logits = drawn(router.num_experts, step, count)
            if kill and router.num_experts > 2:
                logits[:, 7] = -9
            layers.append(measured(router, logits))
        return layers

    assert fired(steps_of(layers_at, log_every=50, steps=800)) == set()
    dead = fired(steps_of(lambda step: layers_at(step, kill=True), 50, 800))
    assert dead == {("dead_expert", 3, 7), ("dead_expert", 4, 7)}


# faults

LOUD = 9.0
"""A logit that almost always wins against those of `drawn`."""


def with_column(value: float, expert: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a change of the logits: all tokens have this logit for the expert."""

    def changed(logits_TE: Tensor) -> Tensor:
        logits_TE[:, expert] = value
        return logits_TE

    return changed


def certain(logits_TE: Tensor) -> Tensor:
    """Every token is certain about its expert, and all experts are equally busy."""
    return 1_000 * torch.eye(logits_TE.shape[1])[torch.arange(len(logits_TE)) % logits_TE.shape[1]]


TOP_1, TOP_4, SIGMOID = ROUTERS["top-1"], ROUTERS["top-4"], ROUTERS["sigmoid"]
FAULTS: dict[str, tuple[str, dict[str, Any], Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "one expert takes all": ("cv", TOP_1, with_column(LOUD), (2, 64, 512)),
    "the same, so others are dead": ("dead_expert", TOP_1, with_column(LOUD), (2, 64, 512)),
    "an expert that is never chosen": ("dead_expert", TOP_1, with_column(-LOUD), (2, 64, 512)),
    "all tokens have the same expert": (
        "dominant_expert",
        TOP_1,
        with_column(LOUD),
        (2, 64, 512),
    ),
    "the same beside three others": (
        "dominant_expert",
        TOP_4,
        with_column(LOUD),
        (6, 64, 512),
    ),
    "a saturated softmax": ("routing_entropy", TOP_1, certain, (2, 64, 512)),
    "full experts": ("dropped_tokens", ROUTERS["switch"], with_column(LOUD), (2, 64, 512)),
    "no expert above the threshold": (
        "unrouted_tokens",
        SIGMOID,
        lambda logits: logits - 5,
        (1, 2, 64, 512),
    ),
    "scores that vanish": (
        "vanishing_scores",
        ROUTERS["top-4 of sigmoids"],
        lambda logits: logits - 50,
        (1, 2, 64, 512),
    ),
    "scores that are 0 in float32": (
        "vanishing_scores",
        SIGMOID,
        lambda logits: logits - 1e4,
        (1, 2, 64, 512),
    ),
    "logits that are infinite": (
        "router_logits",
        TOP_1,
        with_column(torch.inf),
        (1, 2, 64, 512),
    ),
}


@pytest.mark.parametrize(
    ("fault", "num_experts"),
    [(fault, count) for fault, (*_, counts) in FAULTS.items() for count in counts],
)
def test_each_alarm_fires_on_its_fault(fault, num_experts):
    rule, settings, change, _ = FAULTS[fault]
    router = router_of(num_experts, **settings)
    layer = measured(router, change(drawn(num_experts, seed=0)))
    assert rule in {rule for rule, *_ in fired(steps_of(lambda step: [layer], 25, 200))}


@pytest.mark.parametrize("num_experts", [2, 64, HEAVY_512])
@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_without_a_gradient_is_reported(name, num_experts):
    router = router_of(num_experts, **ROUTERS[name])
    layer = measured(router, drawn(num_experts, seed=0), gradient=1e-8)
    places = fired(steps_of(lambda step: [layer], 50, 100))
    assert ("router_gradient", 0) in places


@pytest.mark.parametrize("num_experts", [64, 512])
def test_only_the_dead_expert_among_many_is_reported(num_experts):
    router = router_of(num_experts)

    def layers_at(step: int) -> list[LayerMetrics]:
        return [measured(router, with_column(-LOUD, 5)(drawn(num_experts, seed=step)))]

    assert fired(steps_of(layers_at, 25, 400)) == {("dead_expert", 0, 5)}


def test_steps_with_few_tokens_are_added_up_until_the_load_can_be_judged():
    """64 experts need 1,600 tokens, which are four steps of 400."""
    router = router_of(64)
    alarms = Alarms(ObserveConfig())
    for step in range(1, 9):
        layer = measured(router, with_column(-LOUD, 5)(drawn(64, step, tokens=400)))
        metrics = replace(dense_metrics(step=100 * step), layers=[layer])
        if step == 6:  # the counts are part of the state
            before = alarms
            alarms = Alarms(ObserveConfig())
            alarms.load(before.state())
        places = [(where(alarm), sum(alarm.counts)) for alarm in alarms.look(metrics)]
        is_judged = step in (4, 8)
        assert places == ([(("dead_expert", 0, 5), 1_600)] if is_judged else [])
        assert bool(alarms.counted) != is_judged


def test_the_state_of_a_version_without_counts_is_read():
    alarms = Alarms(ObserveConfig())
    alarms.load({"seen": [], "fine_at": [["cv", 0, -1, 7]], "beyond_at": []})
    assert alarms.state() == {
        "seen": [],
        "fine_at": [["cv", 0, [7]]],
        "beyond_at": [],
        "counted": [],
    }


def test_an_unbalanced_run_of_24_layers_of_256_experts_has_an_event_per_layer_and_rule():
    counts = [100_000] * 8 + [0] * 248
    layer = LayerMetrics(tokens_per_expert=counts, cv=variation(counts), router_grad_norm=1.0)
    alarms = Alarms(ObserveConfig())
    steps = steps_of(lambda step: [layer] * 24, 10, 500)
    found = [alarms.look(metrics) for metrics in steps]
    # `dead_expert` has a patience of 50 steps, and `cv` one of 100.
    assert [len(at_step) for at_step in found] == [0, 0, 0, 0, 24, 0, 0, 0, 0, 48] * 5
    events = [json.dumps(alarm.to_json()) for alarm in found[9]]
    assert all(event.count("tokens_per_expert") == 1 for event in events)
    assert sum(map(len, events)) < 150_000  # one event per expert took 11.7 MB
    dead = [alarm for alarm in found[9] if alarm.rule == "dead_expert"]
    assert all(alarm.experts == tuple(range(8, 256)) for alarm in dead)
    assert together(dead) == (
        "step 100: alarm: 24 layers, the worst is 0; 5,952 experts: share of the layer's load as "
        "low as 0%, below 0.0391% since step 50"
    )


def test_a_line_names_a_few_layers_and_only_counts_many():
    def alarm(layer: int, value: float, *experts: int) -> Alarm:
        return Alarm(
            9, "dominant_expert", layer, experts, value, 0.5, 4, "warn", True, dense_metrics()
        )

    alarms = [alarm(3, 0.25, 1), alarm(0, 0.4, 2, 1), alarm(7, 0.3, 0)]
    assert together(alarms) == (
        "step 9: over: layers 0, 3, 7; 4 experts: share of the layer's tokens as high as 40.0%, "
        "no longer above 50.0%"
    )
    many = [alarm(layer, layer / 100, 0) for layer in range(5)]
    assert "5 layers, the worst is 4; 5 experts: " in together(many)
    assert together(alarms[:1]) == str(alarms[0])
