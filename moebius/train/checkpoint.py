"""Checkpoints: safetensors and JSON in a folder, with a SHA-256 of every file. No pickle is written or read.

A checkpoint is written beside its place, synced, and renamed: a folder of its final name is complete. The manifest, which
names every file's size and hash, is its last file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from moebius.errors import CheckpointError, StorageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Groups = dict[str, dict[str, Tensor]]


def save(folder: Path, tensors: Groups, state: dict[str, Any]) -> Path:
    """Write one NAME.safetensors per group and state.json. Raises StorageError, leaving nothing behind."""
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        manifest = {}
        for group, entries in tensors.items():
            packed = {name: tensor.detach().cpu().contiguous() for name, tensor in entries.items()}
            manifest[f"{group}.safetensors"] = _write(aside / f"{group}.safetensors", to_safetensors(packed))
        manifest["state.json"] = _write(aside / "state.json", json.dumps(state, indent=1).encode())
        _write(aside / MANIFEST, json.dumps({"version": FORMAT_VERSION, "files": manifest}, indent=1).encode())
        _sync_folder(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(
            f"{folder}: the checkpoint could not be written: {error.strerror}; earlier ones are unharmed"
        ) from None
    return folder


def load(folder: Path) -> tuple[Groups, dict[str, Any]]:
    """Every file is verified before any of it is returned. Raises CheckpointError naming what does not fit."""
    contents = _verified(folder)
    tensors = {
        name.removesuffix(".safetensors"): parse_safetensors(data) for name, data in contents.items() if name != "state.json"
    }
    return tensors, json.loads(contents["state.json"])


def latest(checkpoints: Path, report: Callable[[str], None]) -> Path:
    """The newest complete and intact checkpoint; one reported line for each passed over."""
    folders = sorted(checkpoints.glob("step-*"), reverse=True) if checkpoints.is_dir() else []
    for folder in folders:
        try:
            _verified(folder)
            return folder
        except CheckpointError as error:
            report(f"passed over: {error}")
    raise CheckpointError(f"{checkpoints}: no intact checkpoint")


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators: the CPU's and every GPU's."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": state for index, state in enumerate(gpus)}


def set_random_state(states: dict[str, Tensor]) -> None:
    """Take over the states of the generators this machine has."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{index}"], index)


def _verified(folder: Path) -> dict[str, bytes]:
    manifest = _parse_manifest(folder)
    contents = {}
    for name, expected in manifest.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror}") from None
        if len(data) != expected["bytes"]:
            raise CheckpointError(f"{folder / name}: {len(data)} bytes, {expected['bytes']} were written")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{folder / name}: altered since it was written, its SHA-256 differs")
        contents[name] = data
    return contents


def _parse_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, files = manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: incomplete checkpoint, {type(error).__name__}") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: format version {version}; this Moebius reads {FORMAT_VERSION}")
    if "state.json" not in files or any("/" in name or not isinstance(entry, dict) for name, entry in files.items()):
        raise CheckpointError(f"{folder / MANIFEST}: altered since it was written")
    return files


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
