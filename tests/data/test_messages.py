"""Messages of other libraries lose their secrets and line breaks, and nothing else."""

import pytest

from moebius.data.messages import LONGEST_MESSAGE, one_line


def test_what_is_not_secret_stays():
    error = ValueError("what?\n at https://host/a@b: why? ")
    assert one_line(error) == "what? at https://host/a@b: why?"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("GET https://user:hunter2@host/a.txt failed", "GET https://host/a.txt failed"),
        ("GET https://host/a.txt?key=hunter2&x=1 failed", "GET https://host/a.txt failed"),
        ("'s3://hunter2@bucket/a?b=hunter2'", "'s3://bucket/a'"),
    ],
)
def test_secrets_in_urls_are_removed(message, expected):
    assert one_line(RuntimeError(message)) == expected


def test_a_long_message_is_cut():
    assert one_line(RuntimeError("a" * 1000)) == "a" * LONGEST_MESSAGE
