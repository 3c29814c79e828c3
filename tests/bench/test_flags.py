"""Flags over other flags: the command line gets each setting once."""

from moebius.config.files import read_config


def test_a_later_layer_replaces_what_it_sets_again(script):
    layered = script("flags").layered
    ours = ["--train.batch_size=4", "--train.steps", "9", "--train.lr", "-1"]
    flags = layered(ours, ["--train.batch-size", "8"], ["--train.lr=2"])
    assert flags == ["--train.batch-size", "8", "--train.steps", "9", "--train.lr=2"]
    assert read_config("tiny", flags).train.batch_size == 8
    assert layered() == []
