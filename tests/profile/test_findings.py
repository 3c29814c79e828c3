"""What is called wrong, on what evidence, and what its change is predicted to bring."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moebius.memory import memory
from moebius.model.attention import AttentionFunction, attend_expanded, attend_native
from moebius.model.backends import Backends
from moebius.model.experts import ExpertsFunction, grouped, loop
from moebius.profile import trials
from moebius.profile.findings import Finding, changed, findings
from moebius.profile.gpu import Usage
from moebius.profile.report import Profile
from moebius.profile.wording import describe
from tests.profile.made_up import made_up, small_config

PLAIN = ("--model.num_heads=1", "--model.num_kv_heads=1", "--model.moe_min_expansion=4", "--model.moe_max_expansion=4")


def backends_of(run_experts: ExpertsFunction, attend: AttentionFunction) -> Backends:
    return Backends(run_experts, attend, mask=lambda document_BS: None, reasons=())


def stepped(profile: Profile, device: str = "cpu", **changes: Any) -> Any:
    """What the rules read of a model that ran: the loads here are even."""
    model, train = profile.config.model, profile.config.train
    tokens = train.batch_size * train.seq_len
    load_E = torch.full((max(model.experts_per_layer),), tokens / max(1, *model.experts_per_layer))
    stats = [SimpleNamespace(tokens_per_expert_E=load_E, tokens=torch.tensor(float(tokens)), dropped=torch.tensor(0.0))]
    steps = SimpleNamespace(
        config=profile.config,
        device=torch.device(device),
        micro_batch=train.batch_size // train.accumulation_steps,
        is_compiled=False,
        device_bytes=80e9,
        backends=backends_of(loop, attend_native),
        result=SimpleNamespace(router_grad_norm_M=torch.ones(2), stats=stats),
    )
    for name, value in changes.items():
        setattr(steps, name, value)
    return steps


def titles(found: list[Finding]) -> list[str]:
    return [each.title for each in found]


@pytest.fixture
def half(monkeypatch):
    """Every other shape that is tried takes half the time."""
    monkeypatch.setattr(trials, "ratio", lambda *_: 0.5)
    for name in ("attention", "product", "experts", "head"):
        monkeypatch.setattr(trials, name, lambda *_: None)


@pytest.fixture
def same(half, monkeypatch):
    monkeypatch.setattr(trials, "ratio", lambda *_: 1.0)


def found_in(profile: Profile, **changes: Any) -> list[Finding]:
    return findings(profile, stepped(profile, **changes))


def test_nothing_wrong(same):
    profile = made_up(small_config(*PLAIN))
    found = found_in(profile)
    assert not found
    assert describe(profile, found)[0].startswith("findings   nothing wrong; it is bound by ")


def test_a_base_mlp_beside_one_expert_comes_first(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=8", "--model.use_mtp=true"))
    found = found_in(profile)
    assert titles(found) == ["an always-on base MLP", "multi-token prediction, a choice"]
    assert found[0].flags == ("--model.base_expansion=0",)
    assert changed(profile.config, found[0]).model.base_width == 0
    assert found[0].seconds < profile.measured.seconds - 0.9 * profile.measured.of("base_mlp")


def test_a_base_mlp_beside_two_experts_is_a_design(same):
    assert not found_in(made_up(small_config(*PLAIN, "--model.base_expansion=8", "--model.router_top_k=2")))


def test_more_experts_than_claimed(same):
    config = small_config(*PLAIN, "--model.base_expansion=1", "--model.router_type=sigmoid", "--model.router_threshold=0.5")
    found = found_in(made_up(config))
    assert "more compute than one expert a token" in titles(found)
    assert all("--model.router_type=softmax_topk" in each.flags for each in found)


def test_a_small_base_beside_every_expert_is_not_what_costs(same):
    """The founding document's configuration for stability."""
    config = small_config(*PLAIN, "--model.base_expansion=1", "--model.router_type=sigmoid", "--model.router_threshold=0.1")
    assert titles(found_in(made_up(config, experts_per_token=4 * [4.0]))) == ["more compute than one expert a token"]


def test_a_router_without_a_gradient_is_worse_than_anything_slow(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=8"))
    result = SimpleNamespace(router_grad_norm_M=torch.tensor([1.0, 0.0]), stats=[])
    found = found_in(profile, result=result)
    assert found[0].title == "a router without a gradient" and "layers 1" in found[0].evidence


def test_tokens_that_a_full_expert_drops(same):
    profile = made_up(small_config(*PLAIN, "--model.router_type=switch"))
    steps = stepped(profile)
    steps.result.stats[0].dropped = 0.25 * steps.result.stats[0].tokens
    found = findings(profile, steps)
    assert found[0].title == "tokens that no expert takes" and "25%" in found[0].evidence
    steps.result.stats[0].dropped *= 0.01
    assert not findings(profile, steps)


def test_small_heads(half):
    profile = made_up(small_config("--model.num_heads=8", "--model.num_kv_heads=2", *PLAIN[2:], "--train.seq_len=4096"))
    found = next(each for each in found_in(profile) if each.title == "small attention heads")
    assert found.flags == ("--model.num_heads=1", "--model.num_kv_heads=1", "--model.head_dim=64")
    assert profile.measured.seconds - found.seconds >= 0.4 * profile.measured.of("attention_core")


def test_copied_heads_are_a_matter_of_a_gpu(same):
    profile = made_up(small_config("--model.num_heads=4", "--model.num_kv_heads=2", "--model.head_dim=64", *PLAIN[2:]))
    backends = backends_of(loop, attend_expanded)
    assert not found_in(profile, backends=backends)


@pytest.mark.parametrize(("vocabulary", "is_found"), [(500, True), (512, False)])
def test_a_vocabulary_off_the_tile(half, vocabulary, is_found):
    found = found_in(made_up(small_config(*PLAIN, f"--model.vocab_size={vocabulary}")))
    assert ("a vocabulary off the tile size" in titles(found)) == is_found
    assert not is_found or found[0].flags == ("--model.vocab_size=512",)


def test_a_width_off_the_tile(half):
    config = small_config(*PLAIN[:2], "--model.moe_min_expansion=3", "--model.moe_max_expansion=3")
    found = found_in(made_up(config), device="cuda")
    assert "expert widths off the tile size" in titles(found)
    assert next(each.flags for each in found if "width" in each.title)[0] == "--model.moe_min_expansion=4"


def test_an_uneven_load_is_tried_against_an_even_one(half):
    profile = made_up(small_config(*PLAIN))
    backends = backends_of(grouped, attend_native)
    assert "an uneven load that costs time" in titles(found_in(profile, backends=backends))


def test_padding_of_few_rows(same):
    flags = (*PLAIN, "--model.num_experts=64", "--train.micro_batch_size=2")
    for expert_dtype in ("auto", "float8"):
        found = found_in(made_up(small_config(*flags, f"--train.expert_dtype={expert_dtype}")))
        padding = next(each for each in found if "padding" in each.title)
        assert padding.flags == ("--train.micro_batch_size=4",)
        assert ("FP8" in padding.evidence) == (expert_dtype == "float8")
    # 4 rows an expert: 8 more on average in a group of 16
    assert padding.evidence.endswith("about 200.0% more rows")


def test_a_device_that_waits(same):
    profile = made_up(small_config(*PLAIN), waiting=0.3, gpu=Usage(1e9, host_waits=7))
    found = found_in(profile)[0]
    assert found.title == "the device waits for the host"
    assert "30%" in found.evidence and "7 times" in found.evidence
    assert found.seconds == pytest.approx(0.7 * profile.measured.seconds)


@pytest.mark.parametrize(
    ("own", "flags"),
    [((), ("--train.micro_batch_size=512", "--train.batch_size=512")), (("64",), ("--train.micro_batch_size=128",))],
)
def test_a_compiled_step_that_waits_wants_more_tokens_in_a_pass(same, own, flags):
    profile = made_up(small_config(*PLAIN, *(f"--train.micro_batch_size={each}" for each in own)), waiting=0.3)
    assert found_in(profile, is_compiled=True)[0].flags == flags
    nothing = describe(profile, found_in(profile, is_compiled=True, device_bytes=1e6))  # for which there is no memory
    assert nothing == ["findings   nothing wrong; it is bound by the host, for which the device waits in 30% of the step"]


def test_logits_that_fill_the_memory(half):
    config = small_config(*PLAIN, "--model.vocab_size=65536")
    profile = made_up(config, gpu=Usage(memory(config, 2, compiled=False).peak))
    found = next(each for each in found_in(profile) if "logits" in each.title)
    assert found.kind == "choice" and found.flags == ("--parallel.loss_chunks=8",)
    assert 0.5 * profile.measured.gpu.peak_bytes < found.bytes < profile.measured.gpu.peak_bytes
    assert any("GB less" in line for line in describe(profile, [found]))
    in_parts = changed(config, found)
    assert not any("logits" in title for title in titles(found_in(made_up(in_parts, gpu=profile.measured.gpu))))


def test_recomputation_with_memory_to_spare(same):
    profile = made_up(small_config(*PLAIN, "--parallel.activation_checkpointing=full"))
    assert "recomputation with memory to spare" in titles(found_in(profile, device="cuda"))
    assert "recomputation with memory to spare" not in titles(found_in(profile, device="cuda", device_bytes=1e6))


def test_a_small_batch(same):
    profile = made_up(small_config(*PLAIN, "--train.batch_size=1", "--train.seq_len=16"))
    assert "a batch too small for the device" in titles(found_in(profile))


def test_the_flags_can_be_pasted(half):
    profile = made_up(small_config("--model.vocab_size=500", "--model.base_expansion=4", "--model.use_mtp=true"))
    found = found_in(profile)
    text = describe(profile, found)
    assert len(found) >= 2
    for each in found:
        assert any(" ".join(each.flags) in line for line in text)
        assert changed(profile.config, each) != profile.config


def test_gains_that_drown_in_noise_are_not_told(same):
    profile = made_up(small_config(*PLAIN, "--model.base_expansion=1"))
    tiny_base = {
        piece: took * (1e-3 if piece.component == "base_mlp" else 1) for piece, took in profile.measured.pieces.items()
    }
    quiet = replace(profile, measured=replace(profile.measured, pieces=tiny_base))
    assert "an always-on base MLP" not in titles(found_in(quiet))
