"""Set up all tests, and provide a configuration whose run takes a second.

The tensors in tests are small, so torch uses one thread: on a busy machine, several threads would
spend more time waiting for each other than working.
"""

import signal
from pathlib import Path

import pytest
import torch

from moebius.config import Config, DataConfig, ModelConfig, ObserveConfig, TrainConfig

torch.set_num_threads(1)
# Some tests send these signals, which a shell's background commands and nohup ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that are marked `gpu` if there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def small(tmp_path: Path) -> Config:
    """A run of 12 steps, in the test's folder, on the bytes of a text that is easy to learn."""
    text = tmp_path / "squares.txt"
    text.write_text("".join(f"line {n}: {n * n} is the square of {n}\n" for n in range(3000)))
    return Config(
        model=ModelConfig(
            vocab_size=257,
            dim=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            num_experts=3,
            moe_min_expansion=2,
            moe_max_expansion=4,
        ),
        data=DataConfig(
            source=str(text), tokenizer="bytes", val_fraction=0.1, cache=str(tmp_path / "cache")
        ),
        train=TrainConfig(
            steps=12,
            batch_size=4,
            seq_len=32,
            lr=3e-3,
            warmup_steps=2,
            eval_every=5,
            eval_tokens=2000,
            log_every=1,
            checkpoint_every=5,
            out=str(tmp_path / "runs"),
            name="run",
        ),
        observe=ObserveConfig(progress=False),
    )
