"""One thread, and a reason for the tests that a machine without a GPU skips."""

import pytest
import torch

# Matrices this small gain nothing from a second thread, and beside another busy process the threads wait for each other:
# tests/model/test_transformer.py took 217 s with two threads on two shared cores, 8 s with one.
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
