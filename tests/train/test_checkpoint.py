"""Checkpoints: what is saved comes back exactly, and a damaged one is never read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from moebius.errors import CheckpointError
from moebius.train import checkpoint
from tests.train.checkpoints import (
    FILES,
    STATE,
    are_same,
    is_same,
    names_by_group,
    names_in,
    refusal_of,
    some_tensors,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a saved checkpoint."""
    return checkpoint.save(tmp_path / "step-00000007", some_tensors(), STATE)


def test_round_trip_is_exact(tmp_path):
    tensors = some_tensors()
    folder = checkpoint.save(tmp_path / "checkpoints" / "step-00000007", tensors, STATE)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    assert names_in(folder) == sorted(FILES)
    assert names_in(folder.parent) == ["step-00000007"]
    loaded, state = checkpoint.load(folder)
    assert state == STATE
    assert are_same(loaded, tensors)


def test_a_large_group_is_several_files(tmp_path, monkeypatch):
    """Each file stays within the limit unless it is a single larger tensor, and is verified."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", 100)
    sizes = (10, 15, 30, 1, 24, 25, 25, 1)  # numbers of floats, of 4 bytes each
    tensors: checkpoint.Groups = {
        "model": {
            f"w{index}": torch.full((size,), index + 0.5) for index, size in enumerate(sizes)
        },
        "optimizer": {"a": torch.ones(25)},
    }
    folder = checkpoint.save(tmp_path / "step-00000001", tensors, {})
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [
        *(f"model{number}.safetensors" for number in (".2", ".3", ".4", ".5", ".6", "")),
        "optimizer.safetensors",
    ]
    loaded, _ = checkpoint.load(folder)
    assert are_same(loaded, tensors)
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert f"{name}: altered" in refusal_of(folder)
        (folder / name).write_bytes(data)


def test_tied_tensors_come_apart(folder):
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


def test_a_snapshot_overwrites_the_tensors_of_an_earlier_one_where_they_fit():
    first = checkpoint.snapshot({"model": {"fits": torch.zeros(3), "grows": torch.zeros(2)}})
    second = checkpoint.snapshot(
        {"model": {"fits": torch.ones(3), "grows": torch.ones(4), "new": torch.ones(5)}}, first
    )
    assert second["model"]["fits"] is first["model"]["fits"]
    assert all(bool(tensor.all()) for tensor in second["model"].values())
    assert {name: len(tensor) for name, tensor in second["model"].items()} == {
        "fits": 3,
        "grows": 4,
        "new": 5,
    }


def test_no_file_is_a_pickle(folder):
    """JSON files are JSON, and a safetensors file opens with the length of a JSON header."""
    for path in folder.iterdir():
        data = path.read_bytes()
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        assert json.loads(data if path.suffix == ".json" else header)


def test_the_manifest_names_every_other_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == checkpoint.FORMAT_VERSION
    assert sorted(manifest["files"]) == sorted(FILES[:-1])
    sizes = {name: (folder / name).stat().st_size for name in FILES[:-1]}
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == sizes


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed(folder, name):
    path = folder / name
    intact = path.read_bytes()
    stride = 1 if name == "manifest.json" else max(1, len(intact) // 25)
    for position in range(0, len(intact), stride):
        flipped = bytes([intact[position] ^ 1])
        path.write_bytes(intact[:position] + flipped + intact[position + 1 :])
        refusal_of(folder)
    path.write_bytes(intact)
    checkpoint.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [0.0, 0.5, -1])
def test_a_truncated_file_is_noticed(folder, name, length):
    """`length` is a share of the file or, if negative, counted from its end."""
    intact = (folder / name).read_bytes()
    (folder / name).write_bytes(intact[: int(length if length < 0 else length * len(intact))])
    assert name in refusal_of(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_lengthened_file_is_noticed(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert name in refusal_of(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder, name):
    (folder / name).unlink()
    assert name in refusal_of(folder) and "No such file" in refusal_of(folder)


def test_a_missing_folder_is_named(tmp_path):
    assert "no checkpoint here" in refusal_of(tmp_path / "step-00000009")


def test_verify_reads_what_load_reads(folder):
    checkpoint.verify(folder)
    (folder / "random.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"random\.safetensors"):
        checkpoint.verify(folder)


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes, indent=1))


def test_a_future_version_is_named(folder):
    rewrite_manifest(folder, version=checkpoint.FORMAT_VERSION + 1)
    assert f"format {checkpoint.FORMAT_VERSION + 1}" in refusal_of(folder)


@pytest.mark.parametrize(
    "files",
    [{}, [], {"state.json": 3}, {"state.json": {}}, {"../state.json": {"bytes": 2, "sha256": ""}}],
)
def test_a_manifest_of_something_else_is_refused(folder, files):
    rewrite_manifest(folder, files=files)
    assert "manifest.json" in refusal_of(folder)


@pytest.mark.parametrize("text", ["", "3", "[]", "{", '{"version": 1}', "\N{SNOWMAN}"])
def test_a_file_that_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    assert "manifest.json" in refusal_of(folder)


def test_files_that_fit_the_manifest_but_are_no_tensors_are_refused(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    name = "model.safetensors"
    files[name] = checkpoint._write(folder / name, b"no tensors")
    rewrite_manifest(folder, files=files)
    assert "model.safetensors: cannot be parsed" in refusal_of(folder)


def test_random_state_brings_the_same_numbers_back(tmp_path):
    folder = checkpoint.save(tmp_path / "step-1", {"random": checkpoint.random_state()}, {})
    first = torch.rand(5)
    checkpoint.set_random_state(checkpoint.load(folder)[0]["random"])
    assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize(
    "states", [{}, {"cpu": torch.zeros(3, dtype=torch.uint8)}, {"cpu": torch.zeros(3)}]
)
def test_tensors_that_are_no_random_state_are_refused(states):
    with pytest.raises(CheckpointError):
        checkpoint.set_random_state(states)


def test_a_copied_checkpoint_is_as_good(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    loaded, state = checkpoint.load(copy)
    assert state == STATE
    assert names_by_group(loaded) == names_by_group(some_tensors())


@pytest.mark.gpu
def test_gpu_tensors_and_generators_round_trip(tmp_path):
    weight = torch.randn(5, 3, device="cuda").T
    groups = {"model": {"weight": weight}, "random": checkpoint.random_state()}
    folder = checkpoint.save(tmp_path / "step-1", groups, {})
    first = torch.rand(5, device="cuda")
    loaded, _ = checkpoint.load(folder, device="cuda")
    assert loaded["model"]["weight"].is_cuda and is_same(loaded["model"]["weight"], weight)
    checkpoint.set_random_state(loaded["random"])
    assert torch.equal(torch.rand(5, device="cuda"), first)


def test_a_checkpoint_of_a_gigabyte_has_files_for_all_threads():
    tensors = {f"{n}": torch.empty(10_000_000, device="meta") for n in range(25)}
    assert len(list(checkpoint._parts("optimizer", tensors))) > checkpoint.FEW
