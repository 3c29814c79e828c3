"""Tests of the description of a machine."""

from dataclasses import replace

import torch

from moebius.doctor.machine import machine
from tests.doctor.machines import CONFIG, FINE


def test_this_machine():
    config = replace(CONFIG, train=replace(CONFIG.train, out="no/such/folder/yet"))
    this_machine = machine(config)
    assert this_machine.torch == torch.__version__
    assert this_machine.cores >= 1 and this_machine.memory > 1e8
    assert min(this_machine.free_disk.values()) > 0
    assert all("\n" not in text for _, text in this_machine.rows())


def test_rows_name_what_is_there_and_what_is_missing():
    packages = {"packages": {"numpy": "2.4", "rich": ""}, "for wandb": {"wandb": "0.20"}}
    rows = dict(replace(FINE, triton="", packages=packages).rows())
    assert rows["gpu"] == "NVIDIA H100 80GB HBM3, 85.9 GB, 84.8 GB free, sm_90"
    assert rows["torch"] == "2.11.0, CUDA 13.0, driver 580"
    assert rows["triton"] == "not installed"
    assert rows["packages"] == "numpy 2.4, rich MISSING" and rows["for wandb"] == "wandb 0.20"
    assert dict(replace(FINE, cuda="").rows())["torch"] == "2.11.0, without CUDA"


def test_what_only_developers_need_is_not_listed(monkeypatch):
    listed = ["numpy>=2.0", "pytest>=9; extra == 'dev'", "wandb>=0.20; extra == 'wandb'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda package: listed)
    packages = machine(CONFIG).packages
    assert list(packages) == ["packages", "for wandb"] and "numpy" in packages["packages"]


def test_one_core_and_one_thread_are_not_in_the_plural():
    assert ", 1 core, 1 thread, " in dict(replace(FINE, cores=1, threads=1).rows())["cpu"]
    assert ", 16 cores, 16 threads, " in dict(FINE.rows())["cpu"]
