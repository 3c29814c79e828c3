"""A variant inside its own process, where it runs steps and is trained."""

import time
from dataclasses import replace
from typing import Any

import torch

from moebius.config import Config
from moebius.data import prepare
from moebius.errors import NumericError
from moebius.hardware.device import choose_device, describe, wait
from moebius.hardware.memory import PeakMemory
from moebius.hardware.processor import Watch
from moebius.profile.steps import Steps
from moebius.train.evaluate import evaluate
from moebius.train.session import build, feed_for
from moebius.train.step import train_step

WARM_UP = 2


class Contender:
    """A variant that carries out one task after another. All results can be sent as JSON.

    Between two tasks, it keeps its weights and optimizers, but no memory for activations.
    """

    def __init__(self, config: Config):
        self.config = config
        self.device = choose_device(config.train.device)
        self.on_gpu = self.device.type == "cuda"
        self.memory = PeakMemory(self.device)

    def start(self) -> dict[str, Any]:
        """Compile and warm up. Return the seconds per step, the device and notes on the text."""
        self.steps = Steps(self.config, self.device)
        self.steps.run(WARM_UP)
        seconds, notes = self.steps.run(1), list(self.steps.notes)
        return {"seconds": seconds, "device": describe(self.device), "notes": notes}

    def run(self, count: int) -> dict[str, float | str]:
        """Run steps. Return the mean seconds per step, and the most bytes in use so far.

        The bytes are those in use on the GPU or, on a CPU, by the process. `crowding` says who
        else used the processor, and is empty if nobody did.
        """
        if self.on_gpu:
            self.steps.run(1)  # allocates the memory again that `rest` has freed
        watch = Watch()
        seconds = self.steps.run(count)
        crowding = watch.usage().crowding
        return {
            "seconds": seconds,
            "peak_bytes": self.memory.bytes(),
            "crowding": crowding,
        }

    def begin(self, seed: int, steps: int, eval_tokens: int) -> dict[str, float]:
        """Create a new model from a seed, to be trained on the configuration's text.

        Its learning rate schedule ends after `steps` steps. Each evaluation reads `eval_tokens`
        tokens.
        """
        for attribute in ("steps", "state"):
            self.__dict__.pop(attribute, None)  # frees the old model before there is a new one
        train = replace(self.config.train, seed=seed, steps=steps, eval_tokens=eval_tokens)
        self.config = replace(self.config, train=train)
        self.corpus = prepare(self.config.data, self.config.model.vocab_size)
        self.feed = feed_for(self.config, self.corpus, self.device)
        self.state = build(self.config, self.corpus, self.device, say=lambda line: None)
        return {}

    def learn(self, until: int) -> dict[str, float | str]:
        """Train up to step `until`. Return the mean seconds per step, including loading its batch.

        `crowding` is as in `run`.

        Unless it is the only one, the first step does not count, because it may compile. Raises
        NumericError if too many updates are not finite.
        """
        count = until - self.state.step
        skipped = torch.zeros((), device=self.device)
        watch = Watch()
        start = time.perf_counter()
        for number in range(count):
            if number == 1:
                wait(self.device)
                start = time.perf_counter()
            tokens_BL = self.feed.at(self.state.sequences)
            result = train_step(self.state, tokens_BL, self.feed.separator, self.config.train)
            skipped += result.is_skipped
        wait(self.device)
        seconds = (time.perf_counter() - start) / max(1, count - 1)
        if skipped.item() > self.config.train.max_skipped:
            raise NumericError(
                f"{skipped.item():.0f} of the updates up to step {until} had a loss or gradient "
                "that is not finite"
            )
        return {"seconds": seconds, "crowding": watch.usage().crowding}

    def evaluate(self) -> dict[str, float]:
        """Return the loss on the held-out text, in nats per token and in bits per byte."""
        evaluation = evaluate(self.state.model, self.corpus, self.config, self.device)
        # This evaluation has no `stopped` function, and `begin` refuses tokenizers that lose text.
        assert evaluation is not None and evaluation.bits_per_byte is not None
        return {"loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte}

    def rest(self) -> None:
        """Free memory on the GPU for the other variants."""
        if self.on_gpu:
            torch.cuda.empty_cache()
