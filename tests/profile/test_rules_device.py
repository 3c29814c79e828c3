"""Tests of the rules about how a step uses the device."""

import pytest

from moebius.cost.memory import memory
from moebius.hardware.backends import Backends
from moebius.profile.finding import changed
from moebius.profile.timeline import Piece
from moebius.profile.usage import GpuUsage
from moebius.profile.wording import describe
from tests.profile.made_up import PLAIN, findings_of, made_up, small_config, titled, titles


@pytest.mark.parametrize(("device", "is_found"), [("cuda", True), ("cpu", False)])
def test_copied_heads_matter_on_a_gpu(half, device, is_found):
    heads = ("--model.num_heads=4", "--model.num_kv_heads=2", "--model.head_dim=64")
    profile = made_up(small_config(*heads, *PLAIN[2:]))
    reported = findings_of(profile, device=device, backends=Backends("loop", "sdpa_expanded"))
    assert titles(reported) == (["KV heads copied"] if is_found else [])
    if is_found:
        saved = profile.measured.seconds - reported[0].seconds
        assert saved == pytest.approx(0.5 * profile.measured.of("attention_core"))
    native = findings_of(profile, device=device, backends=Backends("loop", "sdpa_native"))
    assert native == []


def test_a_device_that_waits(same):
    profile = made_up(small_config(*PLAIN), waiting=0.3, gpu=GpuUsage(1e9, host_waits=7))
    first = findings_of(profile)[0]
    assert first.title == "the device waits for the host"
    assert "30%" in first.evidence and "7 times" in first.evidence
    assert first.seconds == pytest.approx(0.7 * profile.measured.seconds)


@pytest.mark.parametrize(
    ("flags", "proposed"),
    [
        ((), ("--train.micro_batch_size=512", "--train.batch_size=512")),
        (("--train.micro_batch_size=64",), ("--train.micro_batch_size=128",)),
    ],
)
def test_a_compiled_step_that_waits_needs_more_tokens_per_pass(same, flags, proposed):
    profile = made_up(small_config(*PLAIN, *flags), waiting=0.3)
    assert findings_of(profile, is_compiled=True)[0].flags == proposed


def test_more_tokens_per_pass_are_not_proposed_where_memory_is_full(same):
    profile = made_up(small_config(*PLAIN), waiting=0.3)
    reported = findings_of(profile, is_compiled=True, device_bytes=1e6)
    assert describe(profile, reported) == [
        "findings   nothing wrong; the step is bound by the host, for which the device waits in "
        "30% of it"
    ]


def test_logits_that_fill_the_memory(half):
    config = small_config(*PLAIN, "--model.vocab_size=65536")
    profile = made_up(config, gpu=GpuUsage(memory(config, 2, compiled=False, experts="loop").peak))
    finding = titled(findings_of(profile), "logits")
    assert finding.kind == "choice" and finding.flags == ("--parallel.loss_chunks=8",)
    assert 0.5 * profile.measured.gpu.peak_bytes < finding.bytes < profile.measured.gpu.peak_bytes
    assert any("GB less memory" in line for line in describe(profile, [finding]))
    in_parts = made_up(changed(config, finding), gpu=profile.measured.gpu)
    assert not any("logits" in title for title in titles(findings_of(in_parts)))


@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize(("device_bytes", "is_found"), [(80e9, True), (1e6, False)])
def test_recomputation_with_memory_to_spare(same, kind, device_bytes, is_found):
    profile = made_up(small_config(*PLAIN, f"--parallel.activation_checkpointing={kind}"))
    reported = findings_of(profile, device="cuda", device_bytes=device_bytes)
    assert ("recomputation with memory to spare" in titles(reported)) == is_found


def test_a_small_batch(same):
    profile = made_up(small_config(*PLAIN, "--train.batch_size=1", "--train.seq_len=16"))
    finding = titled(findings_of(profile), "a batch too small for the device")
    assert finding.flags == ("--train.batch_size=2",)


def test_loading_that_takes_time(same):
    profile = made_up(small_config(*PLAIN))
    seconds = profile.measured.seconds
    pieces = profile.measured.pieces | {Piece("data", "forward"): 0.5 * seconds}
    rounds = [1.5 * seconds]
    slow = made_up(profile.config, pieces=pieces, rounds=rounds)
    finding = titled(findings_of(slow), "a data-bound step")
    assert "33%" in finding.evidence and finding.seconds == pytest.approx(seconds)
