"""Tests that pitfalls are reported, with what to do about them."""

from dataclasses import replace

import pytest
import torch

from moebius.doctor.machine import Machine
from moebius.doctor.pitfalls import pitfalls
from moebius.hardware.processor import Usage
from tests.doctor.machines import CONFIG, FINE, H100, with_gpu


def said(machine: Machine, device: str = "cuda", dtype: str = "auto", **environment: str) -> str:
    """Return the pitfalls of a machine, one per line."""
    train = replace(CONFIG.train, dtype=dtype)  # pyright: ignore[reportArgumentType]
    config = replace(CONFIG, train=train)
    return "\n".join(pitfalls(machine, config, torch.device(device), environment))


def test_a_machine_without_pitfalls():
    assert said(FINE, OMP_NUM_THREADS="17", CUDA_LAUNCH_BLOCKING="0") == ""


@pytest.mark.parametrize(
    ("machine", "environment", "part"),
    [
        (replace(FINE, threads=17), {"OMP_NUM_THREADS": "17"}, "export OMP_NUM_THREADS=16"),
        (replace(FINE, quota=2.0), {}, "16 threads on the time of 2 cores: --train.threads 2"),
        (replace(FINE, threads=2, quota=1.0), {}, "2 threads on the time of 1 core: --train"),
        (replace(FINE, usage=Usage(1, 15, 16)), {}, "others are using the processor (15.0 of 16"),
        (FINE, {"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING=1 makes the host wait"),
        (FINE, {"TORCH_COMPILE_DISABLE": "1"}, "turns compilation off"),
        (with_gpu(capability=(7, 5)), {}, "no bfloat16 arithmetic: --train.dtype float32"),
        (with_gpu(free=40 << 30), {}, "nvidia-smi"),
        (replace(FINE, triton=""), {}, "triton is not installed"),
        (replace(FINE, gpus=[H100, H100], shared_memory=64 << 20), {}, "--shm-size"),
        (replace(FINE, free_disk={"train.out": 10**9}), {}, "1.0 GB free for train.out"),
        (replace(FINE, packages={"packages": {"numpy": "2.4", "rich": ""}}), {}, "missing: rich:"),
    ],
)
def test_a_pitfall_says_what_to_do(machine, environment, part):
    lines = said(machine, **environment)
    assert part in lines and "\n" not in lines


def test_others_on_the_processor_matter_more_where_all_of_its_cores_are_needed():
    shared = replace(FINE, usage=Usage(own=1.0, others=3.0, cores=16))
    assert said(shared) == ""
    assert "(3.0 of 16 cores): a run will be slow" in said(shared, device="cpu")


def test_float32_leaves_tensor_cores_idle():
    assert "--train.dtype bfloat16" in said(FINE, dtype="float32")


def test_bfloat16_is_slow_on_a_cpu():
    assert "--train.dtype float32" in said(FINE, device="cpu", dtype="bfloat16")


def test_a_gpu_that_is_not_used():
    without = replace(FINE, gpus=[])
    assert "install a CUDA build" in said(without, device="cpu")
    assert "unset it" in said(without, device="cpu", CUDA_VISIBLE_DEVICES="")
    assert said(replace(without, driver=""), device="cpu") == ""
