"""Tests of the tables of whole models, on made-up times."""

from moebius.config import Config, TrainConfig


def timed_models(script, seconds: dict[str, float]) -> dict:
    """Return models whose steps take these seconds, and whose forward passes take a third."""
    interleaved, models = script("interleaved"), script("interleaved_models")
    config = Config(train=TrainConfig(batch_size=16, micro_batch_size=8, seq_len=2048))
    return {
        name: models.TimedModel(
            config,
            interleaved.Timed([took / 3, took / 3]),
            interleaved.Timed([took, took], 25e9),
        )
        for name, took in seconds.items()
    }


def test_speed_stands_beside_the_documents(script):
    models = timed_models(script, {"Original PR-MoE": 0.5, "No Base MLP": 0.25})
    lines = list(script("founding_models")._speed_table("Performance summary", models))
    assert lines[0].startswith("\n### Performance summary\nSteps of 16 x 2048 tokens")
    assert lines[3] == (
        "| Original PR-MoE | `pr_moe` | 57k | 65.5k |  | 950-1200 | 166.67 | 25.0 | 8 |"
    )
    assert "| 120k | 131.1k | 2.00 (2.00 to 2.00) | ~500 | 83.33 | 25.0 | 8 |" in lines[4]


def test_a_model_that_failed_is_a_row_that_says_so(script):
    models = timed_models(script, {"Original PR-MoE": 0.5, "No Base MLP": 0.25})
    failed = script("interleaved").Timed([], error="out of memory")
    models["No Base MLP"] = models["No Base MLP"]._replace(forward=failed, step=failed)
    lines = list(script("founding_models")._speed_table("Speed", models))
    assert "| 120k | out of memory |  | ~500 |  |  |  |" in lines[-1]


def test_a_pair_has_the_documents_ratio_and_ours(script):
    pair = timed_models(script, {"with MTP": 0.3, "without MTP": 0.2})
    lines = list(script("founding_models")._pair_table("MTP", pair, "two models"))
    assert lines[3] == "| with MTP | 103.51 | 100.00 | 300.00 | 109.2k |"
    assert lines[5] == "| times | 1.31 | 1.50 (1.50 to 1.50) | 1.50 (1.50 to 1.50) |  |"
