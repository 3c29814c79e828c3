"""Without a GPU the kernels run in Triton's interpreter, which has to be asked for before triton is first imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is for Linux")

FOLDER = Path(__file__).parent
FILES = ["test_order.py", "test_experts.py"]


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not gpu", str(FOLDER / file)]
    done = subprocess.run(
        command, cwd=FOLDER.parent.parent, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_every_kernel_fits_a_hopper_gpu():
    """Compiled for one, and its tables of shared memory read: a tile that does not fit shows here, not on the first step."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_hopper"], cwd=FOLDER.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    used = dict(line.split() for line in done.stdout.splitlines())
    assert used.keys() == {
        "_count", "_place", "_gather", "_combine", "_up", "_down", "_down_backward", "_activation_backward", "_product",
        "_sum_gate_gradients", "_weight_gradients", "_hopper_up", "_hopper_down_backward",
    }  # fmt: skip
    assert all(int(shared) <= 227 * 1024 for shared in used.values())
