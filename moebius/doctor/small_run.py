"""A run of a few steps, and the trials that use it.

It must learn, resume exactly where it stopped, notice damage to a checkpoint and repeat its data.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moebius.config import Config, DataConfig, ModelConfig, ObserveConfig, TrainConfig
from moebius.data import Batches, prepare
from moebius.doctor.trial import TrialFailed
from moebius.errors import CheckpointError
from moebius.observe.json_lines import read_metrics
from moebius.observe.terminal import Terminal
from moebius.train import checkpoint, checkpoint_store
from moebius.train.loop import train
from moebius.train.run_directory import RunDirectory
from moebius.train.session import Session, batches_for, resume, start

STEPS, HALF = 12, 6
FALL = 1.0  # nats that the loss must fall by within STEPS; it falls by 3.5 where all is well
NOISE = 4.0  # a resumed run may differ by this many times as much as a repeated run does


class SmallRun:
    """A run of a few steps in a folder, and the trials that use it."""

    def __init__(self, config: Config, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        text = folder / "squares.txt"
        text.write_text(
            "".join(f"{number} times {number} is {number * number}\n" for number in range(4000))
        )
        self.config = _small_config(config, device, folder, text)
        self.whole = RunDirectory(folder / "runs" / "whole")

    def learns(self) -> str:
        """Train from start to end, as `moebius train` does. The loss must fall.

        Returns one line of figures. Raises TrialFailed.
        """
        self._train(start(self.config, "doctor", say=_silent))
        losses = [step.loss for step in read_metrics(self.whole.metrics_path)]
        figures = f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps"
        if not losses[-1] < losses[0] - FALL:
            raise TrialFailed(f"{figures}, and it must fall by {FALL}")
        return figures

    def resumes(self) -> str:
        """Resume the run from the halfway point. It must end as the uninterrupted run did.

        This compares weights, optimizer, random generators and position. A GPU may have a kernel
        that does not give the same bits twice. A resumed run may then differ by up to four times
        as much as a repetition of the whole run does. Returns one line of figures. Raises
        TrialFailed.
        """
        self._train(self._resumed("resumed"))
        error, where = self._difference("resumed")
        if not error:
            return f"{HALF} + {HALF} steps are {STEPS} steps, bit by bit: {where}"
        allowed = 0.0
        if self.device.type == "cuda":
            repeated = replace(self.config, train=replace(self.config.train, name="again"))
            self._train(start(repeated, "doctor", say=_silent))
            allowed = NOISE * self._difference("again")[0]
        figures = f"differs by {error:.1e} at {where}, where {allowed:.1e} is allowed"
        if not error <= allowed:
            raise TrialFailed(figures)
        return figures

    def notices_damage(self) -> str:
        """Flip one bit in each file of the newest checkpoint. It must be refused every time.

        The previous checkpoint must be chosen instead. Returns one line of figures. Raises
        TrialFailed.
        """
        checkpoints = self._copy("damaged").checkpoints
        newest, before = checkpoint_store.complete(checkpoints)
        files = sorted(newest.iterdir())
        for file in files:
            intact = file.read_bytes()
            damaged = bytearray(intact)
            damaged[len(damaged) // 2] ^= 1
            file.write_bytes(damaged)
            try:
                checkpoint.load(newest)
            except CheckpointError:
                latest = checkpoint_store.latest(checkpoints, report=_silent)
                if latest != before:
                    raise TrialFailed(
                        f"{latest.name} was chosen although {file.name} is damaged"
                    ) from None
            else:
                raise TrialFailed(f"a flipped bit in {file.name} went unnoticed")
            file.write_bytes(intact)
        return f"in each of {len(files)} files; {before.name} was chosen instead"

    def repeats_its_data(self) -> str:
        """Read some batches again in several ways. They must be the same.

        The text is opened again, tokenized again in another folder, and split between two
        processes. Returns one line of figures. Raises TrialFailed.
        """
        numbers = range(0, 40, 13)
        first, opened, anew = (self._batches(cache) for cache in ("cache", "cache", "another"))
        for number in numbers:
            start = number * first.batch_size
            batch = first.at(start)
            halves = np.concatenate([first.at(start, rank, 2) for rank in (0, 1)])
            for how, other in (
                ("when the text is opened again", opened.at(start)),
                ("when the text is tokenized again", anew.at(start)),
                ("when two processes read a half each", halves),
            ):
                if not np.array_equal(batch, other):
                    raise TrialFailed(f"batch {number} differs {how}")
        return (
            f"batches {', '.join(map(str, numbers))} are the same opened again, tokenized again, "
            "and split between two processes"
        )

    def _batches(self, cache: str) -> Batches:
        """Return the run's batches, from text that is prepared in a cache folder of that name."""
        data = replace(self.config.data, cache=str(self.folder / cache))
        return batches_for(self.config, prepare(data, self.config.model.vocab_size))

    def _train(self, session: Session) -> None:
        terminal = Terminal(STEPS, progress=False)
        terminal.console.quiet = True
        train(session, terminal, listens=False)  # doctor says that it was stopped

    def _resumed(self, name: str) -> Session:
        """Return a session that continues a copy of the run from the halfway point."""
        run = self._copy(name)
        checkpoint_store.discard_after(run.checkpoints, HALF)
        return resume(self.config, run, say=_silent)

    def _copy(self, name: str) -> RunDirectory:
        """Return a copy of the run under another name. Raises TrialFailed if there is no run."""
        if len(checkpoint_store.complete(self.whole.checkpoints)) < 2:
            raise TrialFailed("there is no run to try it with, because training failed")
        root = shutil.copytree(self.whole.root, self.whole.root.with_name(name))
        return RunDirectory(Path(root))

    def _difference(self, name: str) -> tuple[float, str]:
        """Compare the end of another run with that of the uninterrupted one.

        Returns the largest difference of any tensor, relative to its norm, and where it is. If it
        is 0, all bits are the same, and the second value says what was compared. Raises
        TrialFailed if any state other than the tensors differs.
        """
        other = RunDirectory(self.whole.root.with_name(name))
        (tensors, state), (expected, expected_state) = (
            checkpoint.load(checkpoint_store.complete(run.checkpoints)[0])
            for run in (other, self.whole)
        )
        for number in ("step", "sequences", "tokens"):
            if state[number] != expected_state[number]:
                raise TrialFailed(
                    f"{name}: {number} is {state[number]} at the end, and must be "
                    f"{expected_state[number]}"
                )
        count = sum(len(named) for named in expected.values())
        worst, where = 0.0, f"{count} tensors of {', '.join(expected)}"
        for group, named in expected.items():
            for key, right in named.items():
                if not torch.equal(tensors[group][key], right):
                    error = _relative_error(tensors[group][key], right)
                    worst, where = max((worst, where), (error, f"{group} {key}"))
        return worst, where


def _relative_error(tensor: torch.Tensor, right: torch.Tensor) -> float:
    """Return the norm of the difference divided by that of the right tensor; infinite for NaN."""
    size = max(right.double().norm().item(), 1e-30)
    error = (tensor.double() - right.double()).norm() / size
    return error.nan_to_num(nan=torch.inf).item()


def _small_config(config: Config, device: torch.device, folder: Path, text: Path) -> Config:
    """Return the configuration of the small run, with the backends of `config`."""
    return Config(
        model=ModelConfig(
            vocab_size=257,
            dim=128,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            activation=config.model.activation,
            num_experts=4,
            router_top_k=2,
            moe_min_expansion=1,
            moe_max_expansion=1,
            expert_dropout=0.1,
        ),
        data=DataConfig(
            source=str(text),
            tokenizer="bytes",
            val_fraction=0.1,
            cache=str(folder / "cache"),
            workers=1,
            document_masking=config.data.document_masking,
        ),
        train=TrainConfig(
            steps=STEPS,
            batch_size=4,
            micro_batch_size=2,
            seq_len=128,
            lr=6e-3,
            warmup_steps=2,
            eval_every=0,
            eval_tokens=1000,
            log_every=1,
            checkpoint_every=HALF,
            out=str(folder / "runs"),
            name="whole",
            device=str(device),
            dtype=config.train.dtype,
            expert_dtype=config.train.expert_dtype,
            optimizer=config.train.optimizer,
        ),
        parallel=config.parallel,
        observe=ObserveConfig(progress=False, tensorboard=False),
    )


def _silent(line: str) -> None:
    """Ignore a line that would be shown to a user."""
