"""Where the kernels' tests run: in Triton's interpreter, whose process test_interpreter.py starts, and on a GPU."""

import os

import pytest

pytest.importorskip("triton", reason="triton is for Linux")

from triton.runtime import interpreter

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="test_interpreter.py runs it")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def _patched(tensor, scope, patch=interpreter._patch_lang_tensor):
    """numpy 2.4 no longer takes an array of one element for an int, which triton 3.6's interpreter does."""
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


if IS_INTERPRETED:
    interpreter._patch_lang_tensor = _patched
