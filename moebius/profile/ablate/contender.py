"""A variant of a configuration at work, in a process of its own: it runs steps, and it learns."""

import resource
import sys
import time
from dataclasses import replace

import torch

from moebius.config import Config
from moebius.data import prepare
from moebius.errors import NumericError
from moebius.observe.ceiling import wait
from moebius.profile.measure import Steps
from moebius.train.evaluate import evaluate
from moebius.train.session import build, choose_device, cut
from moebius.train.step import train_step

WARM_UP = 2


class Contender:
    """Everything it returns is JSON. Between two calls it keeps weights and optimizers, and no memory for activations."""

    def __init__(self, config: Config):
        self.config = config
        self.device = choose_device(config.train.device)
        self.on_gpu = self.device.type == "cuda"

    def start(self) -> dict[str, float | str]:
        """Compile and warm up. seconds: about what a step takes."""
        self.steps = Steps(self.config, self.device)
        self.steps.run(WARM_UP)
        seconds = self.steps.run(1)
        device = torch.cuda.get_device_name(self.device) if self.on_gpu else f"CPU, {torch.get_num_threads()} threads"
        return {"seconds": seconds, "device": device}

    def run(self, count: int) -> dict[str, float]:
        """Seconds for each of `count` steps, and the most bytes so far: of the device or, on a CPU, of the process."""
        if self.on_gpu:
            self.steps.run(1)  # takes the memory back that `rest` gave away
        seconds = self.steps.run(count)
        if self.on_gpu:
            return {"seconds": seconds, "peak_bytes": float(torch.cuda.max_memory_allocated(self.device))}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"seconds": seconds, "peak_bytes": float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}

    def begin(self, seed: int, steps: int, eval_tokens: int) -> dict[str, float]:
        """A new model of that seed, to be trained on the configuration's text for `steps`, which its schedule ends with."""
        for held in ("steps", "state"):
            self.__dict__.pop(held, None)  # before there is a second one
        self.config = replace(self.config, train=replace(self.config.train, seed=seed, steps=steps, eval_tokens=eval_tokens))
        self.corpus = prepare(self.config.data, self.config.model.vocab_size)
        self.end_of_text = self.corpus.tokenizer.end_of_text if self.config.data.document_masking else None
        self.batches = cut(self.config, self.corpus)
        self.state = build(self.config, self.corpus, self.device, say=lambda line: None)
        return {}

    def learn(self, until: int) -> dict[str, float]:
        """Train up to a step. seconds: of each step but the first, which may compile; reading the batches is part of it."""
        count = until - self.state.step
        skipped = torch.zeros((), device=self.device)
        start = time.perf_counter()
        for number in range(count):
            if number == 1:
                wait(self.device)
                start = time.perf_counter()
            tokens_BL = torch.from_numpy(self.batches.at(self.state.batch)).to(self.device, non_blocking=True)
            skipped += train_step(self.state, tokens_BL, self.end_of_text, self.config.train).is_skipped
        wait(self.device)
        seconds = (time.perf_counter() - start) / max(1, count - 1)
        if skipped.item() > self.config.train.max_skipped:
            raise NumericError(
                f"{skipped.item():.0f} of the updates up to step {until} had a loss or gradient that is not finite"
            )
        return {"seconds": seconds}

    def evaluate(self) -> dict[str, float]:
        """On the held-out text."""
        found = evaluate(self.state.model, self.corpus, self.config, self.device)
        assert found is not None  # nothing stops it
        return {"loss": found.loss, "bits_per_byte": found.bits_per_byte}

    def rest(self) -> None:
        """Leave the device's memory to the others."""
        if self.on_gpu:
            torch.cuda.empty_cache()
