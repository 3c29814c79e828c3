"""The lines about settings that are probably not what was meant, and none for other runs."""

from dataclasses import replace

from moebius.config import Config
from moebius.data import prepare
from moebius.train.cautions import cautions


def lines(config: Config, **train) -> list[str]:
    config = replace(config, train=replace(config.train, **train))
    return cautions(config, prepare(config.data, config.model.vocab_size))


def test_a_healthy_run_needs_no_caution(small):
    assert lines(small) == []


def test_a_vocabulary_that_the_tokenizer_hardly_uses(small):
    (line,) = lines(replace(small, model=replace(small.model, vocab_size=2048)))
    assert line == (
        "WARNING: the tokenizer has 257 ids, so 1,791 of the 2,048 in model.vocab_size are never "
        "used; set --model.vocab_size 257"
    )
    assert lines(replace(small, model=replace(small.model, vocab_size=272))) == []


def test_many_epochs_over_a_small_text(small):
    tokens = len(prepare(small.data, 257).train)
    per_step = small.train.batch_size * small.train.seq_len
    assert lines(small, steps=int(3.9 * tokens / per_step)) == []
    (line,) = lines(small, steps=34 * tokens // per_step)
    assert line.startswith(f"WARNING: the text is read 34 times ({tokens:,} tokens)")


def test_the_epochs_of_a_mixture_are_those_of_each_source(small, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("".join(f"another line {n}\n" for n in range(30_000)))
    data = replace(small.data, source=f"{small.data.source},{long}", weights=(9, 1))
    config = replace(small, data=data)
    tokens = len(prepare(small.data, 257).train)
    per_step = small.train.batch_size * small.train.seq_len
    (line,) = lines(config, steps=10 * tokens // per_step)
    assert line.startswith("WARNING: source 1 is read 9 times")


def test_fewer_steps_than_the_warm_up(small):
    (line,) = lines(small, steps=8, warmup_steps=9)
    assert line == (
        "WARNING: train.steps=8 is below train.warmup_steps=9, so the learning rate never "
        "reaches 0.003"
    )
    assert lines(small, steps=9, warmup_steps=9) == []
