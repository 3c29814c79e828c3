"""The check that a section refuses wrong settings in one line."""

from collections.abc import Callable
from typing import Any

import pytest

from moebius.errors import ConfigError

Refusal = tuple[dict[str, Any], str, str]
"""Arguments, the beginning of the error's line (the setting and its value), and another part."""


def assert_refused(section: Callable[..., Any], refusal: Refusal) -> None:
    """Check that calling `section` with the arguments raises the expected ConfigError."""
    arguments, beginning, allowed = refusal
    with pytest.raises(ConfigError) as caught:
        section(**arguments)
    message = str(caught.value)
    assert message.startswith(beginning) and allowed in message, message
    assert "\n" not in message
    assert caught.value.exit_code == 2
