"""Batches arrive on the device unchanged, and each process gets its own rows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius.data import Batches, Feed, TokenStream, on_device
from moebius.data.stream import MappedShard
from moebius.errors import ConfigError

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
BATCH_SIZE, SEQ_LEN, LOOKAHEAD = 6, 8, 2


@pytest.fixture
def batches() -> Batches:
    shard = MappedShard(Path("shard"), np.arange(500, dtype="<u2"))
    stream = TokenStream([shard], vocab_size=500, num_documents=1, num_bytes=500)
    return Batches(stream, SEQ_LEN, BATCH_SIZE, seed=3, lookahead=LOOKAHEAD)


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_on_the_device_are_those_of_the_array(device, batches):
    tokens = batches.at(5)
    tokens_BL = on_device(tokens, device)
    assert tokens_BL.device.type == device.type
    assert tokens_BL.dtype == torch.int64
    assert tokens_BL.shape == (BATCH_SIZE, SEQ_LEN + LOOKAHEAD)
    assert (tokens_BL.cpu().numpy() == tokens).all()


@pytest.mark.parametrize("device", DEVICES)
def test_one_process_gets_whole_batches(device, batches):
    feed = Feed(batches, device, separator=None)
    for number in (0, 31, 7):
        assert (feed.at(number).cpu().numpy() == batches.at(number)).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6])
def test_the_rows_of_all_processes_are_the_global_batch(world_size, batches):
    feeds = [Feed(batches, CPU, 0, rank, world_size) for rank in range(world_size)]
    for number in (0, 31, 7):
        rows = [feed.at(number) for feed in feeds]
        few = BATCH_SIZE // world_size
        assert {len(part) for part in rows} <= {few, few + bool(BATCH_SIZE % world_size)}
        assert (torch.cat(rows).numpy() == batches.at(number)).all()


def test_processes_without_a_sequence_are_an_error(batches):
    with pytest.raises(ConfigError, match=r"at least the number of processes \(7\)"):
        Feed(batches, CPU, None, rank=1, world_size=7).at(0)


@pytest.mark.parametrize("module", ["moebius.data", "moebius.data.workers", "moebius.data.feed"])
def test_importing_the_data_path_does_not_import_torch(module):
    program = f"import sys, {module}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
