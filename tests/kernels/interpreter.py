"""The devices that the tests of the kernels run on.

On the CPU they run in Triton's interpreter, in a process that test_interpreter.py starts.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is for Linux")

from triton.runtime import interpreter

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="test_interpreter.py runs it")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def _patch_with_index(tensor, scope, patch=interpreter._patch_lang_tensor):
    """Patch Triton's tensors as its interpreter does, but convert them to an int with `item`.

    The interpreter of triton 3.6 converts an array of one element, which numpy 2.4 refuses.
    """
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


if IS_INTERPRETED:
    interpreter._patch_lang_tensor = _patch_with_index
