"""The tables of an evaluation."""

import math

from moebius.infer.evaluation import Estimate, HeldOut, TextFigures
from moebius.infer.evaluation_table import tasks_table, text_table
from moebius.infer.expert_use import LayerUse
from moebius.infer.interval import Interval
from moebius.infer.tasks import TaskResult
from moebius.observe.metrics import LayerMetrics


def figures(share: float, loss: float, low: float | None, bits: float | None) -> TextFigures:
    around = None if low is None else Interval(low, 2 * loss - low)
    perplexity = around and Interval(math.exp(around.low), math.exp(around.high))
    return TextFigures(
        share=share,
        tokens=12_345,
        num_bytes=50_000,
        documents=7,
        loss=Estimate(loss, around),
        perplexity=Estimate(math.exp(loss), perplexity),
        bits_per_byte=None if bits is None else Estimate(bits, None),
    )


def test_a_row_for_each_source_and_one_for_all():
    sources = {"a": figures(0.75, 2.0, 1.5, 1.25), "b\x1b[1m": figures(0.25, 9.0, None, 3.5)}
    layer = LayerUse(
        3,
        [
            LayerMetrics(tokens_per_expert=[30, 10, 0], cv=1.02, dead_experts=1),
            LayerMetrics(tokens_per_expert=[0, 0, 0]),
        ],
        [[], [], []],
    )
    table = text_table(HeldOut(figures(1, 3.75, 3.0, 1.8), sources, [layer]))
    heads, first, second, everything, _, note, remark, _, *experts = table
    assert heads.split()[:4] == ["source", "share", "tokens", "documents"]
    assert first.split("  ")[-1].strip() == "1.2500"
    assert "2.0000 (1.5000 to 2.5000)  7.389 (4.482 to 12.18)" in first
    assert second.startswith("b\\x1b[1m") and "8,103" in second
    assert everything.split()[:5] == ["all,", "by", "weight", "100%", "12,345"]
    assert "95% confidence intervals" in note and "one document" in remark
    assert len({len(line) for line in (heads, first, second, everything)}) == 1
    assert " ".join(experts[0].split()) == "layer source experts least used most used cv dead"
    assert experts[1].split() == ["3", "a", "3", "0.00%", "75.00%", "1.02", "1"]
    assert experts[2].split() == ["3", "b\\x1b[1m", "3", "0.00%", "0.00%", "0.00", "0"]


def test_one_source_without_bytes_or_experts():
    one = figures(1, 2.0, 1.5, None)
    table = text_table(HeldOut(one, {"a": one}, []))
    assert "all, by weight" not in "\n".join(table)
    assert table[1].endswith("  -") and "the tokenizer loses text" in table[4]
    assert table[-1] == "no layer has experts"


def test_tasks():
    known: dict[str, float | None] = {"value": 0.5, "stderr": 0.05, "low": 0.4, "high": 0.6}
    unknown: dict[str, float | None] = {"value": 3.0, "stderr": None, "low": None, "high": None}
    results = {
        "arc": TaskResult({"acc": known, "ppl": unknown}, 100, 5, "1.0"),
        "group": TaskResult({"acc": known}, None, None, None),
    }
    heads, first, second, third, *_ = tasks_table(results)
    assert heads.split() == ["task", "few-shot", "questions", "metric", "value"]
    assert first.split() == ["arc", "5", "100", "acc", "0.5000", "(0.4000", "to", "0.6000)"]
    assert second.split() == ["arc", "5", "100", "ppl", "3.0000"]
    assert third.split()[:2] == ["group", "acc"]
