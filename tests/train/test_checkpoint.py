"""Checkpoints: what is saved comes back exactly, and nothing that is not whole is ever taken for a checkpoint."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig, TrainConfig
from moebius.errors import CheckpointError, StorageError
from moebius.model.transformer import seeded
from moebius.train import checkpoint
from moebius.train.optimizer import build_optimizers, load_named_state, named_state

FILES = ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]
STATE = {"step": 7, "tokens": 12_345_678_901, "best": 1.25, "name": "émile", "list": [1, None, True]}


def some_tensors() -> checkpoint.Groups:
    weight = torch.randn(5, 3)
    model = {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "rows": weight[1:4],
        "every_other": weight[::2, ::2],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "bfloat16": torch.randn(7).bfloat16(),
        "count": torch.tensor(2**40),
        "mask": torch.tensor([True, False]),
        "not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    return {"model": model, "optimizer": {"weight/step": torch.tensor(3.0)}, "random": checkpoint.random_state()}


def same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: NaN is NaN, -0 is not 0."""
    one, other = one.detach().contiguous(), other.detach().contiguous()
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and caught.value.exit_code == 4
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    return checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)


def test_round_trip_is_exact(tmp_path):
    tensors = some_tensors()
    folder = checkpoint.save(tmp_path / "checkpoints" / "step-00000007", tensors, STATE)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000007"]
    loaded, state = checkpoint.load(folder)
    assert state == STATE
    assert {group: set(named) for group, named in loaded.items()} == {group: set(named) for group, named in tensors.items()}
    for group, named in tensors.items():
        assert all(same(loaded[group][name], tensor) for name, tensor in named.items())


def test_a_large_group_is_several_files(tmp_path, monkeypatch):
    """Each within the limit unless one tensor alone is more; each verified."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100)
    sizes = (10, 15, 30, 1, 24, 25, 25, 1)  # floats of 4 bytes
    tensors: checkpoint.Groups = {
        "model": {f"w{index}": torch.randn(size) for index, size in enumerate(sizes)},
        "optimizer": {"a": torch.randn(25)},
    }
    folder = checkpoint.save(tmp_path / "step-00000001", tensors, {})
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [*(f"model{number}.safetensors" for number in (".2", ".3", ".4", ".5", ".6", "")), "optimizer.safetensors"]
    loaded, _ = checkpoint.load(folder)
    assert {group: named.keys() for group, named in loaded.items()} == {group: named.keys() for group, named in tensors.items()}
    assert all(same(loaded[group][name], value) for group, named in tensors.items() for name, value in named.items())
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert f"{name}: altered" in error_of(folder)
        (folder / name).write_bytes(data)


def test_a_full_disk_stops_all_files_of_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100)
    original = checkpoint._write_tensors

    def full(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        if ".3." in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, tensors)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(tmp_path / "step-00000001", {"model": {f"w{index}": torch.randn(25) for index in range(9)}}, {})
    assert not list(tmp_path.iterdir())


def test_loaded_tensors_are_their_owners(folder):
    loaded, _ = checkpoint.load(folder, device=torch.device("cpu"))
    loaded["model"]["tied"].zero_()
    assert loaded["model"]["weight"].abs().sum() > 0
    checkpoint.load(folder)


def test_an_empty_group_survives(tmp_path):
    loaded, state = checkpoint.load(checkpoint.save(tmp_path / "step-1", {"optimizer": {}}, {}))
    assert loaded == {"optimizer": {}} and state == {}


def test_a_snapshot_is_not_changed_by_later_steps(tmp_path):
    weight = torch.ones(3)
    snapshot = checkpoint.snapshot({"model": {"weight": weight}})
    weight.zero_()
    loaded, _ = checkpoint.load(checkpoint.write(tmp_path / "step-1", snapshot, {}))
    assert torch.equal(loaded["model"]["weight"], torch.ones(3))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_goes_on_bit_identically(tmp_path, optimizer):
    config = TrainConfig(optimizer=optimizer, lr=1e-2)
    shape = ModelConfig(
        vocab_size=61, dim=32, num_layers=1, num_heads=2, num_kv_heads=1, expert_dropout=0.3, tie_embeddings=True
    )

    def train(model, optimizers) -> None:
        for _ in range(2):
            model.loss(torch.randint(61, (2, 17))).total.backward()  # of the global generator, as dropout is
            for each in optimizers:
                each.step()
                each.zero_grad()

    model = seeded(0, shape)
    optimizers = build_optimizers(model, config)
    train(model, optimizers)
    groups = {
        "model": dict(model.named_parameters()),
        "optimizer": named_state(optimizers, model),
        "random": checkpoint.random_state(),
    }
    folder = checkpoint.save(tmp_path / "step-2", groups, {})
    train(model, optimizers)

    other = seeded(1, shape)
    fresh = build_optimizers(other, config)
    loaded, _ = checkpoint.load(folder)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(loaded["model"][name])
    load_named_state(fresh, other, loaded["optimizer"])
    checkpoint.set_random_state(loaded["random"])
    train(other, fresh)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_no_file_is_a_pickle(folder):
    for path in folder.iterdir():
        data = path.read_bytes()
        assert json.loads(data if path.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_manifest_names_every_other_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == checkpoint.FORMAT_VERSION
    assert sorted(manifest["files"]) == sorted(FILES[:-1])
    assert all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for position in range(0, len(whole), 1 if name == "manifest.json" else max(1, len(whole) // 25)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        error_of(folder)
    path.write_bytes(whole)
    checkpoint.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, -1])
def test_a_truncated_file_is_noticed(folder, name, kept):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(kept if kept < 0 else kept * len(whole))])
    assert name in error_of(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_lengthened_file_is_noticed(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert name in error_of(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder, name):
    (folder / name).unlink()
    assert name in error_of(folder) and "No such file" in error_of(folder)


def test_a_missing_folder_is_named(tmp_path):
    assert "no checkpoint here" in error_of(tmp_path / "step-00000009")


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes, indent=1))


def test_a_future_version_is_named(folder):
    rewrite_manifest(folder, version=checkpoint.FORMAT_VERSION + 1)
    assert f"format {checkpoint.FORMAT_VERSION + 1}" in error_of(folder)


@pytest.mark.parametrize(
    "files", [{}, [], {"state.json": 3}, {"state.json": {}}, {"../state.json": {"bytes": 2, "sha256": ""}}]
)
def test_a_manifest_of_something_else_is_refused(folder, files):
    rewrite_manifest(folder, files=files)
    assert "manifest.json" in error_of(folder)


@pytest.mark.parametrize("text", ["", "3", "[]", "{", '{"version": 1}', "\N{SNOWMAN}"])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    assert "manifest.json" in error_of(folder)


def test_files_that_fit_the_manifest_but_are_no_tensors_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoint._write(folder / "model.safetensors", b"no tensors")
    rewrite_manifest(folder, files=manifest["files"])
    assert "model.safetensors: written wrongly" in error_of(folder)


def test_latest_passes_over_what_is_broken_and_says_so(tmp_path):
    for step in (1, 5, 20, 100):
        checkpoint.save(tmp_path / f"step-{step:08d}", {"model": {"weight": torch.full((3,), float(step))}}, {"step": step})
    (tmp_path / "step-00000100" / "manifest.json").unlink()
    (tmp_path / "step-00000020" / "model.safetensors").write_bytes(b"")
    (tmp_path / ".step-00000200.partial").mkdir()
    (tmp_path / "step-00000300").write_text("a file")
    (tmp_path / "notes").mkdir()
    lines: list[str] = []
    assert checkpoint.latest(tmp_path, lines.append) == tmp_path / "step-00000005"
    assert [f"step-{step:08d}" in line for step, line in zip((300, 100, 20), lines, strict=True)] == [True] * 3
    assert not any("\n" in line for line in lines)


def test_latest_compares_steps_as_numbers(tmp_path):
    for name in ("step-99999999", "step-100000000"):
        checkpoint.save(tmp_path / name, {}, {})
    assert checkpoint.latest(tmp_path, print).name == "step-100000000"


def test_latest_of_nothing_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no intact checkpoint"):
            checkpoint.latest(folder, print)


def debris(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("failing_call", range(1, 7))
def test_a_full_disk_leaves_no_debris_and_the_earlier_checkpoint(tmp_path, monkeypatch, failing_call):
    old = checkpoint.save(tmp_path / "step-00000007", {"model": {"weight": torch.ones(3)}}, {"step": 7})
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        checkpoint.save(tmp_path / "step-00000008", some_tensors(), STATE)  # five files and their folder are synced
    assert caught.value.exit_code == 6 and "\n" not in str(caught.value) and "step-00000008" in str(caught.value)
    assert debris(tmp_path) == ["step-00000007"]
    assert checkpoint.load(old)[1] == {"step": 7}


def test_a_real_limit_on_file_size_leaves_no_debris(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            checkpoint.save(tmp_path / "step-00000001", {"model": {"weight": torch.zeros(10_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert debris(tmp_path) == []


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match="step-00000001"):
        checkpoint.save(tmp_path / "checkpoints" / "step-00000001", {}, {})


def test_a_state_that_is_no_json_leaves_no_debris(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "step-00000001", {}, {"path": tmp_path})
    assert debris(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".step-00000007.partial").mkdir()
    (tmp_path / ".step-00000007.partial" / "other.safetensors").write_bytes(b"half")
    folder = checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)
    assert debris(tmp_path) == ["step-00000007"] and debris(folder) == sorted(FILES)


def test_saving_again_replaces(folder):
    checkpoint.save(folder, {"model": {"other": torch.ones(2)}}, {"step": 8})
    loaded, state = checkpoint.load(folder)
    assert state == {"step": 8} and list(loaded) == ["model"] and debris(folder.parent) == [folder.name]


def test_a_replacement_that_fails_leaves_the_old_one(folder, monkeypatch):
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="Permission denied"):
        checkpoint.save(folder, {}, {})
    assert checkpoint.load(folder)[1] == STATE and debris(folder.parent) == [folder.name]


def test_the_manifest_is_last_and_everything_is_synced_before_the_rename(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    checkpoint.save(tmp_path / "step-00000001", some_tensors(), STATE)
    assert events == [*FILES, ".step-00000001.partial", "rename", tmp_path.name]


def test_random_state_brings_the_same_numbers_back(tmp_path):
    folder = checkpoint.save(tmp_path / "step-1", {"random": checkpoint.random_state()}, {})
    first = torch.rand(5)
    checkpoint.set_random_state(checkpoint.load(folder)[0]["random"])
    assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize("states", [{}, {"cpu": torch.zeros(3, dtype=torch.uint8)}, {"cpu": torch.zeros(3)}])
def test_what_is_no_random_state_is_refused(states):
    with pytest.raises(CheckpointError):
        checkpoint.set_random_state(states)


def test_a_copied_checkpoint_is_as_good(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert checkpoint.load(copy)[1] == STATE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_tensors_and_generators_round_trip(tmp_path):
    weight = torch.randn(5, 3, device="cuda").T
    folder = checkpoint.save(tmp_path / "step-1", {"model": {"weight": weight}, "random": checkpoint.random_state()}, {})
    first = torch.rand(5, device="cuda")
    loaded, _ = checkpoint.load(folder, device="cuda")
    assert loaded["model"]["weight"].is_cuda and torch.equal(loaded["model"]["weight"], weight)
    checkpoint.set_random_state(loaded["random"])
    assert torch.equal(torch.rand(5, device="cuda"), first)
