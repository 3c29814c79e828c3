"""JSON of any layout gives the values of json.loads, however few bytes are read at a time."""

import io
import json
import random
from typing import Any

import pytest

from moebius.data import json_values as module
from moebius.data.json_values import NotJson, json_values


def opened(data: bytes) -> Any:
    return io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


def values(data: bytes) -> list:
    return list(json_values(opened(data), 10_000))


def random_value(generator: random.Random, depth: int = 0):
    kind = generator.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return generator.choice([True, False, None, "", 0, -1.5e30, 12345678901])
    if kind <= 3:
        return "".join(generator.choices('aé€𝄞"\\\n[]{},:', k=generator.randrange(40)))
    if kind == 4:
        return [random_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    return {f"k{n}": random_value(generator, depth + 1) for n in range(generator.randrange(4))}


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 2**18])
@pytest.mark.parametrize("indent", [None, 1])
def test_values_are_those_of_json_loads(monkeypatch, read_bytes, indent):
    monkeypatch.setattr(module, "READ_BYTES", read_bytes)
    generator = random.Random(0)
    for number in range(40):
        expected = [random_value(generator) for _ in range(generator.randrange(8))]
        ascii_only = bool(number % 2)
        array = json.dumps(expected, indent=indent, ensure_ascii=ascii_only)
        assert values(f" \n{array}\n ".encode()) == expected
        objects = [value for value in expected if isinstance(value, dict)]
        texts = [json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in objects]
        assert values("\n".join(texts).encode()) == objects


@pytest.mark.parametrize(
    ("data", "num_good", "expected"),
    [
        (b"hello", 0, "character 0: Expecting value"),
        (b"[1, 2", 2, "character 5: no , or ] after a value"),
        (b"[1, 2,", 2, "Expecting value"),
        (b"[1, 2, ]", 2, "character 7: Expecting value"),
        (b"[1 2]", 1, "character 3: no , or ] after a value"),
        (b"[1] 2", 1, "character 4: something follows the array"),
        (b'["abc', 0, "character 1: Unterminated string"),
        (b'[{"a": tru', 0, "Expecting value"),
        (b'["a", "\xff"]', 0, "not UTF-8 (0xff)"),
        (b"[" * 100_000, 0, "recursion"),
        (b'["' + b"a" * 2_000_000 + b'"]', 0, "character 1: a value of more than 10,000"),
    ],
)
def test_the_place_of_the_first_error_is_named(data, num_good, expected):
    good = []
    with pytest.raises(NotJson) as caught:
        good.extend(json_values(opened(data), 10_000))
    assert expected in str(caught.value)
    assert len(good) == num_good


def test_only_a_part_of_a_long_array_is_in_memory():
    class Endless(io.RawIOBase):
        """An array of rows without end."""

        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            row = b'{"text": "some text"},'
            part = row[(self.given - 1) % len(row) :] if self.given else b"["
            part = (part + row * 200 if self.given else part)[: len(buffer)]
            buffer[: len(part)] = part
            self.given += len(part)
            return len(part)

    endless = Endless()
    rows = json_values(io.BufferedReader(endless, 4096), 10_000)
    assert [next(rows) for _ in range(50_000)] == [{"text": "some text"}] * 50_000
    assert endless.given < 4 * 2**20
