"""Long texts come in the same pieces as short ones, at the same cost for every token."""

import random

import pytest

from moebius.infer.continued_text import KEPT, LONGEST, ContinuedText, StopStrings
from tests.infer.test_generate_tokenizers import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_what_the_tokenizer_decodes(kind):
    tokenizer = KINDS[kind]()
    drawn = random.Random(kind)
    prompt = tokenizer.encode("the cat, é ")
    words = ["the", "cat", "song", "s", ".", ",", "é", "漢字", "😀", "do n't", " ", "  the"]
    text = " ".join(drawn.choices(words, k=150))
    ids = [id for id in range(tokenizer.size) if id != tokenizer.end_of_text]
    for script in (tokenizer.encode(text), drawn.choices(ids, k=300)):
        whole = tokenizer.decode([*prompt, *script])
        for size in (1, 7, 100):
            continued = ContinuedText(tokenizer, prompt)
            parts = [script[at : at + size] for at in range(0, len(script), size)]
            written = "".join(continued.add(part) for part in parts) + continued.rest()
            if whole.startswith(tokenizer.decode(prompt)):
                assert tokenizer.decode(prompt) + written == whole
            else:  # wrong bytes right after those of the prompt
                assert kind == "byte fallback" and written


def test_no_more_than_a_few_tokens_are_decoded_again():
    tokenizer = KINDS["bpe"]()
    lengths = []

    class Counting:
        """The tokenizer, whose calls are counted."""

        def decode(self, ids):
            lengths.append(len(ids))
            return tokenizer.decode(ids)

        def decode_settled(self, ids):
            lengths.append(len(ids))
            return tokenizer.decode_settled(ids)

    counting: object = Counting()
    continued = ContinuedText(counting, tokenizer.encode("the "))  # pyright: ignore
    script = tokenizer.encode("the cat sings, é 漢字 😀 " * 100)
    assert len(script) > 10 * LONGEST
    for token in script:
        continued.add([token])
    assert max(lengths) <= LONGEST + KEPT


@pytest.mark.parametrize("stops", [("ab",), ("aab", "b"), ("abc", "bc", "cc"), ("aaa", "ca")])
def test_stop_strings_do_not_depend_on_the_pieces(stops):
    drawn = random.Random(0)
    for _ in range(300):
        text = "".join(drawn.choices("abc", k=drawn.randrange(12)))
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(ends)[1]] if ends else text
        stopping, found, at = StopStrings(stops), "", 0
        while at < len(text):
            size = drawn.randrange(1, 5)
            found += stopping.add(text[at : at + size])
            at += size
        assert (found + stopping.rest(), stopping.is_found) == (expected, bool(ends))
