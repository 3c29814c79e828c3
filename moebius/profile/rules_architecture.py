"""Rules about what the model computes: its base MLP, its routing, its additional losses."""

from collections.abc import Iterator
from dataclasses import replace

from moebius.profile.case import ROUTED, Case
from moebius.profile.finding import Finding

FEW_EXPERTS = 2.5  # experts per token, with a sigmoid router
DROPPED = 0.05  # share of the assignments
TO_TOP_1 = ("--model.router_type=softmax_topk", "--model.router_top_k=1")


def router_without_gradient(case: Case) -> Iterator[Finding]:
    """Report routers whose gradient is zero, which cannot learn."""
    norms = case.steps.result.router_grad_norm_M
    if norms is not None and not norms.all():
        layers = [str(layer) for layer, norm in enumerate(norms.tolist()) if not norm]
        finding = case.finding(
            "a router without a gradient",
            f"routed layers {', '.join(layers)}: these routers cannot learn which experts to "
            "choose; one cause is a gate that is always 1",
            "--model.router_type=softmax_topk",
        )
        yield replace(finding, kind="harm")


def dropped_tokens(case: Case) -> Iterator[Finding]:
    """Report that full experts drop many tokens, which get no expert but still cost time."""
    stats = case.steps.result.stats
    tokens = sum(layer.tokens.item() for layer in stats)
    dropped = sum(layer.dropped.item() for layer in stats) / max(1.0, tokens)
    if dropped > DROPPED:
        finding = case.finding(
            "tokens that no expert takes",
            f"full experts refuse {dropped:.0%} of the tokens at a capacity factor of "
            f"{case.model.capacity_factor:g}, and their rows are moved all the same; softmax_topk "
            "drops none",
            "--model.router_type=softmax_topk",
        )
        yield replace(finding, kind="harm")


def base_mlp(case: Case) -> Iterator[Finding]:
    """Report a base MLP that every token passes through in addition to one expert.

    This was the founding document's bottleneck. It is not reported if tokens have many experts, as
    with a sigmoid router that has not learned anything yet, because the base MLP then costs little
    in comparison.
    """
    model = case.model
    is_sigmoid = model.router_type == "sigmoid"
    experts = case.experts_per_token if is_sigmoid else model.router_top_k
    if not model.base_width or not any(model.experts_per_layer):
        return
    if experts > (FEW_EXPERTS if is_sigmoid else 1):
        return
    yield case.finding(
        "an always-on base MLP",
        f"in every layer each token passes a base MLP of width {model.base_width} beside "
        f"{case.experts_per_token:.2f} experts: the base takes {case.share('base_mlp'):.0%} of "
        f"the step, the experts {case.share(*ROUTED):.0%}",
        "--model.base_expansion=0",
        *(TO_TOP_1 if is_sigmoid else ()),
    )


def more_than_one_expert(case: Case) -> Iterator[Finding]:
    """Report that a sigmoid router's threshold gives tokens more than one expert."""
    model = case.model
    if model.router_type != "sigmoid" or case.experts_per_token <= 1.05:
        return
    moved = ", and rows are moved for all of them" if case.profile.has_row_for_every_choice else ""
    yield case.finding(
        "more compute than one expert per token",
        f"with its threshold of {model.router_threshold:g} the sigmoid router gives a token "
        f"{case.experts_per_token:.2f} of {max(model.experts_per_layer)} experts, which take "
        f"{case.share(*ROUTED):.0%} of the step{moved}",
        *TO_TOP_1,
    )


def multi_token_prediction(case: Case) -> Iterator[Finding]:
    """Report what multi-token prediction costs."""
    if case.model.use_mtp:
        finding = case.finding(
            "multi-token prediction, a choice",
            "three more passes through a layer and the LM head take "
            f"{case.share('mtp'):.0%} of the step; `moebius ablate` with --learn tells whether "
            "they are worth it",
            "--model.use_mtp=false",
        )
        yield replace(finding, kind="choice")
