"""A run of a few steps, and what is tried with it: that it learns, resumes, notices damage and repeats its data."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moebius.config import Config, DataConfig, ModelConfig, ObserveConfig, TrainConfig
from moebius.data import prepare
from moebius.errors import CheckpointError
from moebius.observe.json_lines import read_lines
from moebius.observe.terminal import Terminal
from moebius.profile.doctor.agreement import Failed
from moebius.train import checkpoint
from moebius.train.loop import Session, train
from moebius.train.run_directory import RunDirectory
from moebius.train.session import cut, resume, start

STEPS, HALF = 12, 6
FALL = 1.0  # nats, at least, in STEPS; it is 3.5 where all is well


class SmallRun:
    """A run of a few steps in a folder, and what is tried with it."""

    def __init__(self, config: Config, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        text = folder / "squares.txt"
        text.write_text("".join(f"{number} times {number} is {number * number}\n" for number in range(4000)))
        self.config = Config(
            model=ModelConfig(
                vocab_size=257, dim=128, num_layers=2, num_heads=4, num_kv_heads=2, activation=config.model.activation,
                num_experts=4, router_top_k=2, moe_min_expansion=1, moe_max_expansion=1, expert_dropout=0.1,
            ),
            data=replace(_bytes(text, folder / "cache"), document_masking=config.data.document_masking),
            train=TrainConfig(
                steps=STEPS, batch_size=4, micro_batch_size=2, seq_len=128, lr=6e-3, warmup_steps=2, eval_every=0,
                eval_tokens=1000, log_every=1, checkpoint_every=HALF, out=str(folder / "runs"), name="whole",
                device=str(device), dtype=config.train.dtype, expert_dtype=config.train.expert_dtype,
                optimizer=config.train.optimizer,
            ),
            parallel=config.parallel,
            observe=ObserveConfig(progress=False, tensorboard=False),
        )  # fmt: skip
        self.whole = RunDirectory(folder / "runs" / "whole")

    def learns(self) -> str:
        """From start to end, as `moebius train` does it; the loss must fall."""
        self._train(start(self.config, "doctor", say=_silent))
        losses = [line["loss"] for line in read_lines(self.whole.metrics_path)]
        figures = f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps"
        if not losses[-1] < losses[0] - FALL:
            raise Failed(f"{figures}, a fall of {FALL} is wanted")
        return figures

    def resumes(self) -> str:
        """Stopped half-way and resumed, the run must end as it did: weights, optimizer, random generators and position.

        A GPU may have a kernel that never gives the same bits twice: resuming may then differ by four times as much as the
        same run does when it is simply repeated.
        """
        self._train(self._resumed("resumed"))
        off, what = self._difference("resumed")
        if not off:
            return f"{HALF} + {HALF} steps are {STEPS} steps, bit by bit: {what}"
        noise = 0.0
        if self.device.type == "cuda":
            self._train(start(replace(self.config, train=replace(self.config.train, name="again")), "doctor", say=_silent))
            noise, _ = self._difference("again")
        figures = f"differs by {off:.1e} at {what}, where {4 * noise:.1e} is allowed"
        if not off <= 4 * noise:
            raise Failed(figures)
        return figures

    def notices_damage(self) -> str:
        """One bit of each file of the newest checkpoint: every one must be refused, and the one before be found instead."""
        checkpoints = self._copy("damaged").checkpoints
        newest, before = checkpoint.complete(checkpoints)
        files = sorted(newest.iterdir())
        for file in files:
            intact = file.read_bytes()
            damaged = bytearray(intact)
            damaged[len(damaged) // 2] ^= 1
            file.write_bytes(damaged)
            try:
                checkpoint.load(newest)
            except CheckpointError:
                found = checkpoint.latest(checkpoints, report=_silent)
                if found != before:
                    raise Failed(f"{found.name} was chosen, with {file.name} damaged") from None
            else:
                raise Failed(f"a flipped bit in {file.name} went unnoticed")
            file.write_bytes(intact)
        return f"in each of {len(files)} files; {before.name} was found instead"

    def repeats_its_data(self) -> str:
        """Opened again, tokenised again elsewhere, and cut for two processes: the same batches."""
        vocab_size, batches = self.config.model.vocab_size, range(0, 40, 13)
        first, opened, anew = (
            cut(self.config, prepare(replace(self.config.data, cache=str(self.folder / cache)), vocab_size))
            for cache in ("cache", "cache", "another")
        )
        for number in batches:
            batch = first.at(number)
            halves = np.concatenate([first.at(number, rank, 2) for rank in (0, 1)])
            for how, other in (("opened again", opened.at(number)), ("made again", anew.at(number)), ("halved", halves)):
                if not np.array_equal(batch, other):
                    raise Failed(f"batch {number} differs {how}")
        return f"batches {', '.join(map(str, batches))} are the same opened again, tokenised again, and for two processes"

    def _train(self, session: Session) -> None:
        terminal = Terminal(STEPS, progress=False)
        terminal.console.quiet = True
        train(session, terminal)

    def _resumed(self, name: str) -> Session:
        run = self._copy(name)
        checkpoint.discard_after(run.checkpoints, HALF)
        return resume(self.config, run, say=_silent)

    def _copy(self, name: str) -> RunDirectory:
        if len(checkpoint.complete(self.whole.checkpoints)) < 2:
            raise Failed("no run to try it with: the training failed")
        return RunDirectory(Path(shutil.copytree(self.whole.root, self.whole.root.with_name(name))))

    def _difference(self, name: str) -> tuple[float, str]:
        """The largest difference of a tensor at the end from the whole run's, relative to its norm, and where it is. 0 means
        the same bits. Raises Failed if the numbers beside the tensors differ."""
        (mine, my_state), (right, right_state) = (
            checkpoint.load(checkpoint.complete(run.checkpoints)[0])
            for run in (RunDirectory(self.whole.root.with_name(name)), self.whole)
        )
        for number in ("step", "batch", "tokens"):
            if my_state[number] != right_state[number]:
                raise Failed(f"{name}: {number} is {my_state[number]} at the end, not {right_state[number]}")
        worst, where = 0.0, f"{sum(len(named) for named in right.values())} tensors of {', '.join(right)}"
        for group, named in right.items():
            for key, tensor in named.items():
                if not torch.equal(mine[group][key], tensor):
                    off = (mine[group][key].double() - tensor.double()).norm() / max(tensor.double().norm().item(), 1e-30)
                    worst, where = max((worst, where), (off.nan_to_num(nan=torch.inf).item(), f"{group} {key}"))
        return worst, where


def _bytes(text: Path, cache: Path) -> DataConfig:
    return DataConfig(source=str(text), tokenizer="bytes", val_fraction=0.1, cache=str(cache), workers=1)


def _silent(line: str) -> None:
    """Nobody is listening."""
