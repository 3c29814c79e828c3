"""What is wrong with a profiled step: the evidence, the change to make, and the gain it should bring."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import torch

from moebius.config import Config, ModelConfig
from moebius.errors import ConfigError
from moebius.memory import memory
from moebius.model.attention import attend_expanded
from moebius.model.experts import loop
from moebius.model.float8 import ALIGNMENT
from moebius.profile import trials
from moebius.profile.measure import Steps
from moebius.profile.plan.layouts import FILLED
from moebius.profile.predict import predicted_seconds
from moebius.profile.report import Profile
from moebius.settings import override, parse_flags

SMALL_HEAD, LARGE_HEAD = 64, 128  # matrix units and fused kernels work in tiles of at least the first
TILE = 64
EXPERT_TILE = 128
ROW_TILE = 128
WORTH_SAYING = 0.02  # of the step
ROUTED = ("dispatch", "expert_gemms", "activation", "combine")
LOSS_CHUNKS = 8
LOGITS = 0.1  # of the peak
DROPPED = 0.05  # of the assignments
BLOCK = {"norms", "attention_projections", "rotary", "attention_core", "router", "base_mlp", *ROUTED}
KEPT = {"attention_projections", "attention_core", "expert_gemms", "base_mlp"}  # by selective checkpointing


@dataclass(frozen=True)
class Finding:
    """flags: the change, to be pasted; seconds: what the step should take with it, and the bytes it should save. harm is to
    what the model learns, a choice is not wrong, but has a price."""

    title: str
    evidence: str
    flags: tuple[str, ...]
    seconds: float
    kind: Literal["harm", "waste", "choice"] = "waste"
    bytes: float = 0.0


@dataclass(frozen=True)
class _Case:
    """What a rule looks at."""

    profile: Profile
    steps: Steps

    @property
    def model(self) -> ModelConfig:
        return self.profile.config.model

    def share(self, *components: str) -> float:
        """Of the step."""
        return sum(self.profile.measured.of(name) for name in components) / self.profile.measured.seconds

    @property
    def routed(self) -> list[float]:
        """Experts a token had in each of the blocks that have any."""
        layers = self.profile.measured.experts_per_token[: self.model.num_layers]
        return [used for used, count in zip(layers, self.model.experts_per_layer, strict=True) if count]

    @property
    def experts_per_token(self) -> float:
        """The mean over these."""
        return sum(self.routed) / len(self.routed) if self.routed else 0.0

    def without_second_forward(self, component: str) -> float:
        """The component's time without what backward computes again, over its time."""
        measured = self.profile.measured
        busy = measured.of(component) - measured.of(component, "waiting")
        return 1 - measured.of(component, "forward") / busy if busy else 1.0

    def memory(self, config: Config) -> float:
        """Bytes that a step of the configuration should need at most."""
        steps = self.steps
        return memory(config, self.profile.item, steps.is_compiled, own_kernels=steps.backends.has_own_kernels).peak

    def ratio_of_widths(self, other: int, present: int) -> float:
        """Of the times of a product from the residual stream's width to these."""
        other_product, present_product = (trials.product(self.steps, self.model.dim, width) for width in (other, present))
        return trials.ratio(other_product, present_product, self.steps.device)

    def finding(self, title: str, evidence: str, *flags: str, **factors: float) -> Finding:
        """factors: components whose efficiency changes."""
        config = override(self.profile.config, parse_flags(list(flags)))
        return Finding(title, evidence, flags, predicted_seconds(self.profile, config, factors))


def findings(profile: Profile, steps: Steps) -> list[Finding]:
    """Harm first, then waste, then choices, the largest predicted gain first; no gain below 2% of the step. Rules may try a
    shape on the device: seconds at most."""
    found: list[Finding] = []
    for rule in RULES:
        with suppress(ConfigError):  # the change does not go with the rest of the configuration
            found += rule(_Case(profile, steps))
    longest = (1 - WORTH_SAYING) * profile.measured.seconds
    worth = [each for each in found if each.kind == "harm" or each.bytes or each.seconds < longest]
    return sorted(worth, key=lambda each: (("harm", "waste", "choice").index(each.kind), each.seconds))


def changed(config: Config, finding: Finding) -> Config:
    """The configuration with the finding's flags on top."""
    return override(config, parse_flags(list(finding.flags)))


def _base_mlp(case: _Case) -> Iterator[Finding]:
    """The founding document's: a base MLP that every token passes beside the one expert it is meant to have. A sigmoid router
    gives half of the experts before it has learnt anything, and beside many of them the base is not what costs."""
    model = case.model
    experts, few = (case.experts_per_token, 2.5) if model.router_type == "sigmoid" else (model.router_top_k, 1)
    if not model.base_width or not any(model.experts_per_layer) or experts > few:
        return
    to_top1 = ("--model.router_type=softmax_topk", "--model.router_top_k=1") if model.router_type == "sigmoid" else ()
    yield case.finding(
        "an always-on base MLP",
        f"every token passes a base of width {model.base_width} in every layer beside {case.experts_per_token:.2f} experts: "
        f"{case.share('base_mlp'):.0%} of the step for the base, {case.share(*ROUTED):.0%} for the experts",
        "--model.base_expansion=0",
        *to_top1,
    )


def _more_than_one(case: _Case) -> Iterator[Finding]:
    model = case.model
    if model.router_type == "sigmoid" and case.experts_per_token > 1.05:
        yield case.finding(
            "more compute than one expert a token",
            f"the sigmoid router's threshold of {model.router_threshold:g} gives a token {case.experts_per_token:.2f} of "
            f"{max(model.experts_per_layer)} experts, {case.share(*ROUTED):.0%} of the step"
            + (", and rows are moved for all of them" if case.profile.has_row_for_every_choice else ""),
            "--model.router_type=softmax_topk",
            "--model.router_top_k=1",
        )


def _router_without_gradient(case: _Case) -> Iterator[Finding]:
    norms = case.steps.result.router_grad_norm_M
    if norms is not None and not norms.all():
        layers = [str(layer) for layer, norm in enumerate(norms.tolist()) if not norm]
        evidence = (
            f"routed layers {', '.join(layers)}: they cannot learn whom to choose; a gate of 1 whatever they say is one cause"
        )
        yield replace(case.finding("a router without a gradient", evidence, "--model.router_type=softmax_topk"), kind="harm")


def _dropped(case: _Case) -> Iterator[Finding]:
    stats = case.steps.result.stats
    dropped = sum(layer.dropped.item() for layer in stats) / max(1.0, sum(layer.tokens.item() for layer in stats))
    if dropped > DROPPED:
        found = case.finding(
            "tokens that no expert takes",
            f"full experts refuse {dropped:.0%} of them at a capacity factor of {case.model.capacity_factor:g}, and their rows "
            "are moved all the same; softmax_topk drops none",
            "--model.router_type=softmax_topk",
        )
        yield replace(found, kind="harm")


def _multi_token_prediction(case: _Case) -> Iterator[Finding]:
    if case.model.use_mtp:
        found = case.finding(
            "multi-token prediction, a choice",
            f"three more passes through a layer and the head: {case.share('mtp'):.0%} of the step; "
            "`moebius ablate` with --learn tells whether they are worth it",
            "--model.use_mtp=false",
        )
        yield replace(found, kind="choice")


def _small_heads(case: _Case) -> Iterator[Finding]:
    """Predicted from the attention core alone, measured at both shapes. Wider heads with as many weights in all, and keys and
    values as wide as they can be kept."""
    model = case.model
    queries, keys = model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    shapes = [
        (heads, groups, width)
        for width in range(SMALL_HEAD, LARGE_HEAD + 1, 8)
        if queries % width == 0
        for heads in [queries // width]
        for groups in range(1, heads + 1)
        if heads % groups == 0
    ]
    if model.head_width >= SMALL_HEAD or not shapes:
        return
    heads, groups, width = min(shapes, key=lambda shape: (abs(shape[1] * shape[2] - keys), shape[2]))
    present = trials.attention(case.steps, model.num_heads, model.num_kv_heads, model.head_width)
    ratio = trials.ratio(trials.attention(case.steps, heads, groups, width), present, case.steps.device)
    yield case.finding(
        "small attention heads",
        f"{model.num_heads} heads of {model.head_width}: the attention core is {case.share('attention_core'):.0%} of the step, "
        f"and with {heads} of {width} was measured to take {ratio:.2f} of that; keys and values "
        + (f"stay {keys} wide" if groups * width == keys else f"become {groups * width} wide, from {keys}"),
        f"--model.num_heads={heads}",
        f"--model.num_kv_heads={groups}",
        f"--model.head_dim={width}",
        attention_core=ratio,
    )


def _expanded_heads(case: _Case) -> Iterator[Finding]:
    model, backends = case.model, case.steps.backends
    if backends.attend is not attend_expanded or case.steps.device.type == "cpu":  # faster so on a CPU, docs/log.md
        return
    copies = 2 * (model.num_heads - model.num_kv_heads) * model.head_width
    yield case.finding(
        "KV heads copied",
        f"the backend expands {model.num_kv_heads} KV heads to {model.num_heads}: {copies} more numbers a token and layer",
        "--parallel.attention_backend=flex",
        "--parallel.compile=on",
    )


def _vocabulary(case: _Case) -> Iterator[Finding]:
    model = case.model
    padded = math.ceil(model.vocab_size / TILE) * TILE
    if padded == model.vocab_size:
        return
    ratio = case.ratio_of_widths(padded, model.vocab_size)
    yield case.finding(
        "a vocabulary off the tile size",
        f"{model.vocab_size} ids; a head of {padded} was measured to take {ratio:.2f} of its product's time",
        f"--model.vocab_size={padded}",
        lm_head=ratio,
    )


def _logits(case: _Case) -> Iterator[Finding]:
    """What all logits of a micro-batch at once take of a GPU's memory, and what the loss part by part takes of time: tried."""
    config, peak = case.profile.config, case.profile.measured.gpu.peak_bytes
    if config.parallel.loss_chunks > 1 or not peak:
        return
    in_parts = replace(config, parallel=replace(config.parallel, loss_chunks=LOSS_CHUNKS))
    all_at_once, part = (case.memory(each) for each in (config, in_parts))
    if all_at_once - part < LOGITS * peak:
        return
    ratio = trials.ratio(trials.head(case.steps, LOSS_CHUNKS), trials.head(case.steps, 1), case.steps.device)
    found = case.finding(
        "all logits at once, a choice",
        f"they are about {(all_at_once - part) / peak:.0%} of the {peak / 1e9:.1f} GB that a step needs; "
        f"in {LOSS_CHUNKS} parts the loss was measured to take {ratio:.2f} of its time",
        f"--parallel.loss_chunks={LOSS_CHUNKS}",
        lm_head=ratio,
    )
    yield replace(found, kind="choice", bytes=all_at_once - part)


def _recomputation(case: _Case) -> Iterator[Finding]:
    parallel, device = case.profile.config.parallel, case.steps.device
    if parallel.activation_checkpointing == "none" or device.type == "cpu":
        return
    without = replace(case.profile.config, parallel=replace(parallel, activation_checkpointing="none"))
    needed, has = case.memory(without), case.steps.device_bytes
    if needed < FILLED * has:
        components = BLOCK if parallel.activation_checkpointing == "full" else BLOCK - KEPT
        yield case.finding(
            "recomputation with memory to spare",
            f"{parallel.activation_checkpointing} checkpointing, while a step without needs about {needed / 1e9:.0f} of "
            f"{has / 1e9:.0f} GB",
            "--parallel.activation_checkpointing=none",
            **{name: case.without_second_forward(name) for name in components},
        )


def _expert_width(case: _Case) -> Iterator[Finding]:
    """As a product at both widths; per unit of width, so that a wider expert is not called faster for being wider."""
    model = case.model
    narrow = min((width for width in model.expert_widths if width % EXPERT_TILE), default=0)
    if not narrow or not any(model.experts_per_layer) or case.steps.device.type == "cpu":
        return
    wide = math.ceil(narrow / EXPERT_TILE) * EXPERT_TILE
    ratio = case.ratio_of_widths(wide, narrow)
    off = sum(width % EXPERT_TILE > 0 for width in model.expert_widths)
    if ratio < 1:
        yield case.finding(
            "expert widths off the tile size",
            f"{off} of {model.num_layers} layers' experts have a width that {EXPERT_TILE} does not divide; {wide} was measured "
            f"to take {ratio:.2f} of the time of {narrow}",
            f"--model.moe_min_expansion={wide / model.dim:g}",
            f"--model.moe_max_expansion={wide / model.dim:g}",
            expert_gemms=ratio,
        )


def _uneven_tiles(case: _Case) -> Iterator[Finding]:
    """A group of rows fills whole tiles: many experts with few rows each waste the rest of their last one."""
    tokens = case.steps.micro_batch * case.profile.config.train.seq_len
    rows = [tokens * used / count for used, count in zip(case.routed, filter(None, case.model.experts_per_layer), strict=True)]
    waste = sum(ROW_TILE / 2 / each for each in rows if each) / max(1, len(rows))
    train = case.profile.config.train
    of_float8 = f"; FP8 fills each up to a multiple of {ALIGNMENT}: about {waste * ALIGNMENT / ROW_TILE:.1%} more rows"
    if waste > 0.05 and train.accumulation_steps % 2 == 0:
        yield case.finding(
            "padding inside the experts' products",
            f"{rows[0]:.0f} rows an expert in a micro-batch, in tiles of {ROW_TILE}: about {waste:.0%} of them empty"
            + (of_float8 if train.expert_dtype == "float8" else ""),
            f"--train.micro_batch_size={2 * case.steps.micro_batch}",
            expert_gemms=(1 + waste / 2) / (1 + waste),
        )


def _imbalance(case: _Case) -> Iterator[Finding]:
    """The busiest layer's experts tried at the load they had, and at an even one. Of an untrained router: a run's own is in
    its metrics."""
    stats = case.steps.result.stats[: case.model.num_layers]
    if not stats or case.steps.backends.run_experts is loop:
        return
    shares = [layer.tokens_per_expert_E.max().item() / layer.tokens.item() for layer in stats]
    share, load_E = max(shares), stats[shares.index(max(shares))].tokens_per_expert_E
    even = trials.experts(case.steps, torch.full_like(load_E, load_E.mean().item()))
    ratio = trials.ratio(even, trials.experts(case.steps, load_E), case.steps.device)
    if ratio < 1:
        yield case.finding(
            "an uneven load that costs time",
            f"the busiest expert has {share:.0%} of its layer's tokens; with an even load its products were measured to take "
            f"{ratio:.2f} of the time",
            f"--model.aux_loss_coeff={10 * case.model.aux_loss_coeff or 0.1:g}",
            expert_gemms=ratio,
        )


def _waiting_device(case: _Case) -> Iterator[Finding]:
    """The time in which the device had nothing to do, given back: by less work for the host, or more tokens each time."""
    gpu, step, waiting = case.profile.measured.gpu, case.profile.measured.seconds, case.profile.measured.waiting
    parallel, train = case.profile.config.parallel, case.profile.config.train
    if waiting < 0.05 * step:
        return
    waits = f", the host waits for it {gpu.host_waits} times" if gpu.host_waits else ""
    flags = ["--parallel.compile=on"] if not case.steps.is_compiled else []
    if gpu.host_waits and parallel.expert_backend == "loop":
        flags.append("--parallel.expert_backend=grouped")
    if not flags:
        flags = [f"--train.micro_batch_size={2 * case.steps.micro_batch}"]
        flags += [f"--train.batch_size={2 * train.batch_size}"] if train.accumulation_steps % 2 else []
        needed = case.memory(override(case.profile.config, parse_flags(flags)))
        if needed > FILLED * case.steps.device_bytes:
            return
    launching = case.profile.measured.host / step
    evidence = (
        f"it has nothing to do in {waiting / step:.0%} of the step, and launching takes the host about {launching:.0%} of it"
    )
    yield replace(case.finding("the device waits for the host", evidence + waits, *flags), seconds=step - waiting)


def _data_bound(case: _Case) -> Iterator[Finding]:
    config, share = case.profile.config, case.share("data")
    if share > WORTH_SAYING:
        yield case.finding(
            "a data-bound step",
            f"{share:.0%} of the step is spent on loading its batch from {config.data.cache}; put that on a local disk",
            "--data.cache=/local/moebius",
            data=0.0,
        )


def _small_batch(case: _Case) -> Iterator[Finding]:
    train = case.profile.config.train
    share = case.share("optimizer")
    if share > 0.1:
        yield case.finding(
            "a batch too small for the device",
            f"{share:.0%} of the step is the optimizer's, which costs the same for any batch of {train.batch_size} or more",
            f"--train.batch_size={2 * train.batch_size}",
        )


RULES: tuple[Callable[[_Case], Iterator[Finding]], ...] = (
    _router_without_gradient,
    _dropped,
    _base_mlp,
    _more_than_one,
    _multi_token_prediction,
    _small_heads,
    _expanded_heads,
    _vocabulary,
    _expert_width,
    _uneven_tiles,
    _imbalance,
    _waiting_device,
    _data_bound,
    _recomputation,
    _logits,
    _small_batch,
)
