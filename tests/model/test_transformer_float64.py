"""A model in float64 computes in float64 all the way, so that it can serve as the exact answer."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moebius.config import ParallelConfig
from moebius.hardware.backends import choose_backends
from moebius.model.rope import rotation
from moebius.model.transformer import seeded
from tests.model.tiny import ROUTERS, S, random_tokens, tiny

END = 0


class Dtypes(TorchDispatchMode):
    """Notes the operators that return floating-point numbers narrower than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            is_float = isinstance(result, Tensor) and result.is_floating_point()
            if is_float and result.dtype != torch.float64:
                self.narrow.add(str(func))
        return results


@pytest.mark.parametrize("separator", [END, None])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("router", ROUTERS)
def test_no_operator_is_narrower(router, chunks, separator):
    changes: dict[str, Any] = {
        "use_mtp": True,
        "qk_norm": True,
        "base_expansion": 1.0,
        "residual_mix": "learned",
        "router_z_loss_coeff": 0.1,
        "router_jitter": 0.1,
    }
    config = tiny(**(changes | ROUTERS[router]))
    backends = choose_backends(ParallelConfig(loss_chunks=chunks))
    model = seeded(0, config, backends).double()
    with Dtypes() as dtypes:
        model.loss(random_tokens(config), separator).total.backward()
    assert dtypes.narrow == set()


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
def test_the_angles_have_the_models_dtype_but_at_least_float32(theta):
    config, cpu = tiny(rope_theta=theta), torch.device("cpu")
    exact = rotation(S, config, cpu, torch.float64)
    half = config.rotary_dims // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(S, dtype=torch.float64)[:, None] * frequencies
    torch.testing.assert_close(exact.cos, angles.cos(), rtol=0, atol=1e-15)
    torch.testing.assert_close(exact.sin, angles.sin(), rtol=0, atol=1e-15)
    for dtype in (torch.float32, torch.bfloat16):
        assert rotation(S, config, cpu, dtype).cos.dtype == torch.float32
