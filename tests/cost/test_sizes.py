"""The sizes of dtypes, compared with torch's."""

import torch

from moebius.cost import sizes


def test_sizes_are_those_of_torch():
    assert torch.float32.itemsize == sizes.FLOAT32
    assert torch.bfloat16.itemsize == sizes.BFLOAT16
    assert torch.int64.itemsize == sizes.INT64
