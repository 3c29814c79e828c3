"""Exported models and tokenizers do what ours do: a sample of what bench/export.py compares."""

from itertools import islice

import pytest

CONFIGURATIONS = 12
LARGEST = 1e-5


@pytest.mark.parametrize("number", range(CONFIGURATIONS))
def test_stock_logits_equal_ours(script, tmp_path, number):
    export = script("export")
    case = next(islice(export.cases(seed=1), number, None))
    result = export.compared(case, tmp_path, seed=number)
    assert result.largest < LARGEST, case
    for difference in (result.full, result.padded, result.cached):
        assert difference.num_compared > export.BATCH * export.LENGTH / 2


def test_the_sample_has_many_architectures(script):
    export = script("export")
    held = [export.holder(*case).architecture for case in islice(export.cases(seed=1), 12)]
    assert len({architecture.name for architecture in held}) >= 6


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_the_exported_tokenizer_gives_the_same_ids_and_text(script, tmp_path, kind):
    export = script("export")
    assert export.wrong_texts(export.tokenizer(kind), tmp_path, count=1000) == []


def test_texts_that_spell_the_end_of_text_are_among_them(script):
    export = script("export")
    assert sum(export.END_OF_TEXT in text for text in export.texts(1000)) > 100


@pytest.mark.parametrize("number", range(3))
def test_greedy_text_of_transformers_equals_ours(script, tmp_path, number):
    export = script("export")
    case = next(islice(export.cases(seed=3), number, None))
    ours, theirs = export.greedy_pair(case, tmp_path, seed=number)
    assert ours and ours == theirs
