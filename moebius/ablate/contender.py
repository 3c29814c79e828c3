"""A variant at work in its own process: it runs steps, and it learns."""

import time
from dataclasses import replace

import torch

from moebius.config import Config
from moebius.data import prepare
from moebius.errors import NumericError
from moebius.hardware.device import choose_device, describe, peak_memory, wait
from moebius.profile.steps import Steps
from moebius.train.evaluate import evaluate
from moebius.train.session import build, feed_for
from moebius.train.step import train_step

WARM_UP = 2


class Contender:
    """A variant that is asked to do one task after the other. All results can be sent as JSON.

    Between two tasks it keeps its weights and optimizers, and no memory for activations.
    """

    def __init__(self, config: Config):
        self.config = config
        self.device = choose_device(config.train.device)
        self.on_gpu = self.device.type == "cuda"

    def start(self) -> dict[str, float | str]:
        """Compile and warm up. Return about what a step takes in seconds, and the device."""
        self.steps = Steps(self.config, self.device)
        self.steps.run(WARM_UP)
        return {"seconds": self.steps.run(1), "device": describe(self.device)}

    def run(self, count: int) -> dict[str, float]:
        """Run steps. Return the mean seconds of one, and the most bytes in use so far.

        The bytes are those of the GPU or, on a CPU, of the process.
        """
        if self.on_gpu:
            self.steps.run(1)  # takes the memory back that `rest` has given away
        return {"seconds": self.steps.run(count), "peak_bytes": peak_memory(self.device)}

    def begin(self, seed: int, steps: int, eval_tokens: int) -> dict[str, float]:
        """Create a new model from a seed, to be trained on the configuration's text.

        Its learning rate schedule ends after `steps`. Each evaluation reads `eval_tokens`.
        """
        for attribute in ("steps", "state"):
            self.__dict__.pop(attribute, None)  # before there is a second model
        train = replace(self.config.train, seed=seed, steps=steps, eval_tokens=eval_tokens)
        self.config = replace(self.config, train=train)
        self.corpus = prepare(self.config.data, self.config.model.vocab_size)
        self.feed = feed_for(self.config, self.corpus, self.device)
        self.state = build(self.config, self.corpus, self.device, say=lambda line: None)
        return {}

    def learn(self, until: int) -> dict[str, float]:
        """Train up to a step. Return the mean seconds of a step, reading its batch included.

        The first step does not count if there are others, because it may compile. Raises
        NumericError if too many updates are not finite.
        """
        count = until - self.state.step
        skipped = torch.zeros((), device=self.device)
        start = time.perf_counter()
        for number in range(count):
            if number == 1:
                wait(self.device)
                start = time.perf_counter()
            tokens_BL = self.feed.at(self.state.batch)
            result = train_step(self.state, tokens_BL, self.feed.separator, self.config.train)
            skipped += result.is_skipped
        wait(self.device)
        seconds = (time.perf_counter() - start) / max(1, count - 1)
        if skipped.item() > self.config.train.max_skipped:
            raise NumericError(
                f"{skipped.item():.0f} of the updates up to step {until} had a loss or gradient "
                "that is not finite"
            )
        return {"seconds": seconds}

    def evaluate(self) -> dict[str, float]:
        """Return the loss on the held-out text, in nats per token and in bits per byte."""
        evaluation = evaluate(self.state.model, self.corpus, self.config, self.device)
        assert evaluation is not None  # only a signal would stop it
        return {"loss": evaluation.loss, "bits_per_byte": evaluation.bits_per_byte}

    def rest(self) -> None:
        """Leave the GPU's memory to the other variants."""
        if self.on_gpu:
            torch.cuda.empty_cache()
