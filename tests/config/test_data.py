"""Which values the settings of the text refuse."""

import pytest

from moebius.config import DataConfig
from tests.config.refusals import Refusal, assert_refused

REFUSED: list[Refusal] = [
    ({"source": 3}, "data.source=3", "must be text"),
    *[
        ({name: " "}, f"data.{name}=' '", "must be non-empty")
        for name in ("source", "text_field", "tokenizer", "cache")
    ],
    ({"val_fraction": 0.0}, "data.val_fraction=0.0", "must be above 0 and below 1"),
    ({"val_fraction": 1}, "data.val_fraction=1.0", "must be above 0 and below 1"),
    ({"vocab_size": -1}, "data.vocab_size=-1", "must be at least 0"),
    ({"workers": -1}, "data.workers=-1", "must be from 0 to 4096"),
    ({"weights": -1}, "data.weights=-1.0", "must be at least 0"),
    ({"weights": [1, 2]}, "data.weights=[1.0, 2.0]", "one number for each of the 1 sources"),
    ({"source": "a,b", "weights": [1, -2]}, "data.weights=[1.0, -2.0]", "must be at least 0"),
    ({"source": "a,b", "weights": [0, 0]}, "data.weights=[0.0, 0.0]", "2 sources, not all 0"),
    ({"source": "s3://user:word@host/file"}, "data.source: ", "the environment"),
    ({"source": "a,https://host/file?signature=x"}, "data.source: ", "the environment"),
    ({"source": "http://host/a.csv#x"}, "data.source: ", "with a fragment; leave out #"),
    ({"source": "a, https://host/a.csv.gz#,b"}, "data.source: ", "with a fragment; leave out #"),
    ({"vocab_size": 100}, "data.vocab_size=100", "needs at least 257 ids"),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=str)
def test_refused_in_one_line_that_names_setting_value_and_what_is_allowed(refusal):
    assert_refused(DataConfig, refusal)


def test_a_url_that_is_refused_is_not_printed():
    refusal: Refusal = ({"source": "s3://user:word@host/file"}, "data.source: contains", "")
    assert_refused(DataConfig, refusal)
    with pytest.raises(ValueError) as caught:
        DataConfig(source="s3://user:word@host/file")
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "kept"),
    [(1, 1.0), ([1, 2, 0], (1.0, 2.0, 0.0)), ((0.1, 0.2, 0.7), (0.1, 0.2, 0.7))],
)
def test_weights_are_one_number_or_one_for_each_source(weights, kept):
    assert DataConfig(source="a,b,c", weights=weights).weights == kept


def test_what_only_looks_like_a_fragment_or_needs_no_256_bytes_is_allowed():
    for source in ("s3://bucket/a#b.csv", "a#b.txt", "http://host/a.txt,c#/x"):
        assert DataConfig(source=source).source == source
    assert DataConfig(vocab_size=257).vocab_size == 257
    assert DataConfig(vocab_size=100, tokenizer="bytes").vocab_size == 100
