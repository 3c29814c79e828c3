"""Tests of the kernels on a machine without a GPU.

The other tests of this folder run in Triton's interpreter. It must be turned on before triton is
first imported, so they run in a separate process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is for Linux")

FOLDER = Path(__file__).parent
FILES = ["test_order.py", "test_momentum.py", "test_symmetric.py", "test_router.py"]
LONG_FILES = [*FILES, "test_experts.py"]


PLAIN_KERNELS = {
    *("_count", "_accumulate", "_place", "_gather", "_combine", "_up", "_down", "_down_backward"),
    *("_activation_backward", "_product", "_sum_gate_gradients", "_weight_gradients"),
    *("_symmetric", "_advance", "_subtract"),
    *("_few_logits", "_logits", "_logits_backward", "_add_slices"),
    *("_choose", "_drop", "_choose_backward"),
    *("_sum_block", "_add_up", "_sum_block_backward"),
}
BY_HAND = {"_hopper_up", "_hopper_down_backward", "_hopper_product", "_hopper_weights"}


@pytest.mark.parametrize(
    ("files", "marked"),
    [
        (FILES, "not gpu and not heavy"),
        pytest.param(LONG_FILES, "not gpu", marks=pytest.mark.heavy),
    ],
    ids=["short", "all"],
)
def test_in_the_interpreter(files, marked):
    paths = [str(FOLDER / file) for file in files]
    arguments = ["-p", "no:cacheprovider", "-m", marked, *paths]
    done = run_module("pytest", *arguments, environment={"TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


def test_every_kernel_fits_a_hopper_gpu():
    """A tile that needs too much shared memory fails here, and not on the first training step."""
    used = compile_for(90)
    assert used.keys() == PLAIN_KERNELS | BY_HAND
    assert all(shared <= 227 * 1024 for shared in used.values())


@pytest.mark.heavy
@pytest.mark.parametrize("capability", [80, 89, 100])
def test_the_kernels_not_written_by_hand_compile_for_other_gpus(capability):
    assert compile_for(capability).keys() == PLAIN_KERNELS


def compile_for(capability: int) -> dict[str, int]:
    """Return the most shared memory in bytes that each kernel uses on a GPU."""
    done = run_module("tests.kernels.compile_for_gpus", str(capability))
    assert done.returncode == 0, done.stderr[-4000:]
    pairs = (line.split() for line in done.stdout.splitlines())
    return {name: int(shared) for name, shared in pairs}


def run_module(
    module: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` at the root of the repository, with additions to the environment."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=FOLDER.parent.parent,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
