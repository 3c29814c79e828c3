"""Tests of the rules about shapes."""

import pytest

from moebius.hardware.backends import Backends
from tests.profile.made_up import PLAIN, findings_of, made_up, small_config, titled, titles


def test_small_heads(half):
    heads = ("--model.num_heads=8", "--model.num_kv_heads=2")
    profile = made_up(small_config(*heads, *PLAIN[2:], "--train.seq_len=4096"))
    finding = titled(findings_of(profile), "small attention heads")
    assert finding.flags == (
        "--model.num_heads=1",
        "--model.num_kv_heads=1",
        "--model.head_dim=64",
    )
    saved = profile.measured.seconds - finding.seconds
    assert saved >= 0.4 * profile.measured.of("attention_core")


@pytest.mark.parametrize(("vocabulary", "is_found"), [(500, True), (512, False)])
def test_a_vocabulary_off_the_tile(half, vocabulary, is_found):
    reported = findings_of(made_up(small_config(*PLAIN, f"--model.vocab_size={vocabulary}")))
    assert ("a vocabulary that is no multiple of 64" in titles(reported)) == is_found
    assert not is_found or reported[0].flags == ("--model.vocab_size=512",)


@pytest.mark.parametrize(("device", "is_found"), [("cuda", True), ("cpu", False)])
def test_an_expert_width_off_the_tile(half, device, is_found):
    config = small_config(*PLAIN[:2], "--model.moe_min_expansion=3", "--model.moe_max_expansion=3")
    reported = findings_of(made_up(config), device=device)
    assert ("expert widths off the tile size" in titles(reported)) == is_found
    if is_found:
        assert titled(reported, "expert widths").flags[0] == "--model.moe_min_expansion=4"


@pytest.mark.parametrize(("experts", "is_found"), [("grouped", True), ("loop", False)])
def test_an_uneven_load_is_compared_with_an_even_one(half, experts, is_found):
    reported = findings_of(
        made_up(small_config(*PLAIN)), backends=Backends(experts, "sdpa_native")
    )
    assert ("an uneven load that costs time" in titles(reported)) == is_found


@pytest.mark.parametrize(("expert_dtype", "is_float8"), [("auto", False), ("float8", True)])
def test_padding_of_few_rows(same, expert_dtype, is_float8):
    config = small_config(
        *PLAIN,
        "--model.num_experts=64",
        "--train.micro_batch_size=2",
        f"--train.expert_dtype={expert_dtype}",
    )
    finding = titled(findings_of(made_up(config), device="cuda"), "padding")
    assert finding.flags == ("--train.micro_batch_size=4",)
    # An expert has 4 rows; on average, 8 more rows fill them up to a multiple of 16.
    assert finding.evidence.endswith("about 200.0% more rows") == is_float8


@pytest.mark.parametrize("experts", ["loop", "grouped", "float8"])
def test_nothing_is_said_about_tiles_where_there_are_none(same, experts):
    """The products of a CPU have no tiles that an expert's few rows could leave empty."""
    for shape in ((), ("--model.num_experts=64", "--train.micro_batch_size=2")):
        config = small_config("--model.vocab_size=500", *shape)
        reported = findings_of(made_up(config), backends=Backends(experts, "sdpa_native"))
        assert not any("tile" in finding.title + finding.evidence for finding in reported)
