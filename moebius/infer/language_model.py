"""A trained model with its tokenizer, ready to write text: `moebius.load(path).generate("…")`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from moebius.config import Config, ModelConfig
from moebius.config.printable import complain
from moebius.config.routers import ROUTERS
from moebius.config.suggestions import nearest
from moebius.data import Tokenizer
from moebius.errors import ConfigError
from moebius.hardware.backends import backends_for
from moebius.hardware.device import choose_device
from moebius.hardware.precision import matmul_dtype
from moebius.infer.cached import Cached
from moebius.infer.generate import Request, write
from moebius.infer.sampling import Sampling
from moebius.infer.trained import trained
from moebius.infer.window import window_start
from moebius.model.transformer import Transformer
from moebius.moe.experts import Experts
from moebius.moe.few_tokens import use_few_or_many
from moebius.train.resumption import own_tokenizer
from moebius.train.run_directory import RunDirectory
from moebius.train.state import load_model

Report = Callable[[str], None]
NUM_AT_ONCE = 16
"""Number of texts that are written at the same time unless another one is given."""


class Options(TypedDict, total=False):
    """What `LanguageModel` writes and how, all of it optional."""

    max_tokens: int
    """Largest number of tokens of each text (200)."""
    temperature: float
    """Randomness (0.8). 0, or almost 0, always takes the likeliest token."""
    top_k: int
    """Draw from this number of likeliest tokens only (0: from all)."""
    top_p: float
    """Draw from the likeliest tokens that together have this probability (1)."""
    min_p: float
    """Draw from tokens that are at least this share as likely as the likeliest (0)."""
    seed: int
    """Seed of the random numbers (0)."""
    stop: str | Sequence[str]
    """String or strings that end a text (none)."""
    speculate: bool
    """Draft tokens with multi-token prediction and verify them in one pass (False)."""


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode, its tokenizer, and how to run them. `load` makes one."""

    model: Transformer
    """The model. Its matrix products have their weights in `dtype` already. Its router drops no
    tokens, so that a text does not depend on those that are written beside it."""
    tokenizer: Tokenizer
    """The tokenizer of the run."""
    context: int
    """Largest number of tokens that the model reads at once, as in training."""
    dtype: torch.dtype = torch.float32
    """Number format of the matrix products."""
    step: int = 0
    """The step of the checkpoint that the weights come from."""

    def generate(self, prompt: str = "", **options: Unpack[Options]) -> str:
        """Return the text that follows the prompt; `Options` says how it may be changed.

        Raises ConfigError for an option that is not allowed, and NumericError if the model's
        logits are not finite.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str = "", **options: Unpack[Options]) -> Iterator[str]:
        """Yield the text that follows the prompt, piece by piece as it is written."""
        speculates = options.get("speculate", False)
        request = _request(options)
        ids = self.encoded([prompt])
        decoder = self.decoder(ids, request, 1, speculates)
        for piece in write(decoder, self.tokenizer, ids, request):
            if piece.text:
                yield piece.text

    def generate_all(
        self,
        prompts: Sequence[str],
        num: int = 1,
        num_at_once: int = NUM_AT_ONCE,
        **options: Unpack[Options],
    ) -> list[list[str]]:
        """Return `num` texts for each prompt, written `num_at_once` at a time.

        A text is the same whichever are written beside it, but for the rounding of sums.
        """
        request = replace(_request(options), num=num)
        speculates = options.get("speculate", False)
        ids = self.encoded(prompts)
        decoder = self.decoder(ids, request, num_at_once, speculates)
        pieces = write(decoder, self.tokenizer, ids, request, num_at_once, is_streamed=False)
        texts = [[""] * num for _ in prompts]
        for piece in pieces:
            texts[piece.number // num][piece.number % num] += piece.text
        return texts

    def encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt, without the end of text that precedes them."""
        return [self.tokenizer.encode(prompt) for prompt in prompts]

    def decoder(
        self, prompts: Sequence[list[int]], request: Request, num_at_once: int, speculates: bool
    ) -> Cached:
        """Return a decoder whose cache is large enough for these prompts, as `encoded` has them.

        Raises ConfigError if it should speculate and the model has no multi-token prediction, or
        write fewer than one text at once.
        """
        if num_at_once < 1:
            raise ConfigError(f"num_at_once={num_at_once}: must be at least 1")
        return Cached(
            self.model,
            self.tokenizer.size,
            self.context,
            request.sampling,
            num_texts=max(1, min(num_at_once, len(prompts) * request.num)),
            longest=_longest(prompts) + request.max_tokens,
            dtype=self.dtype,
            speculates=speculates,
        )

    def note_on_length(self, prompts: Sequence[list[int]]) -> str:
        """Return a line about prompts, as `encoded` has them, that the context is too short for.

        It is "" if all fit.
        """
        longest = _longest(prompts)
        if longest <= self.context:
            return ""
        read = longest - window_start(longest, self.context)
        which = "the prompt" if len(prompts) == 1 else "the longest prompt"
        return (
            f"{which} has {longest:,} tokens and the model reads {self.context:,} at most, as in "
            f"training: it reads the last {read:,}"
        )


def load(
    path: str | Path, step: int | None = None, device: str = "auto", report: Report = complain
) -> LanguageModel:
    """Return the language model of a run, from its newest intact checkpoint or that of a step.

    path: the run's directory.
    device: auto, cpu, cuda or cuda:N.
    report: gets a line for each damaged checkpoint that is passed over. By default it is printed
    on stderr.

    Raises ConfigError if the directory is no run or the machine has no such device,
    CheckpointError if there is no such checkpoint or none is intact, and DataError if the
    tokenizer is not the run's own any more.
    """
    run = RunDirectory.open(str(path))
    return load_run(run, choose_device(device), report, step)


def load_run(
    run: RunDirectory, device: torch.device, report: Report, step: int | None = None
) -> LanguageModel:
    """Return the language model of a run on the device. See `load`."""
    config = run.config()
    record = run.record(report)
    tokenizer = own_tokenizer(config, run, record)
    weights = trained(run, config, record, step, report=report)
    context = config.train.longest_seq_len(weights.tokens)
    return language_model(config, weights.tensors, tokenizer, device, context, weights.steps[0])


def language_model(
    config: Config,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    device: torch.device,
    context: int,
    step: int = 0,
) -> LanguageModel:
    """Return the language model with these weights on the device.

    context: largest number of tokens that it reads at once.
    """
    model = new_model(config, device)
    load_model(model, tensors)
    dtype = matmul_dtype(config.train, device)
    convert_products(model, dtype)
    return LanguageModel(model, tokenizer, context, dtype, step)


def new_model(config: Config, device: torch.device) -> Transformer:
    """Return an untrained model that is prepared to write text on the device."""
    backends = backends_for(decoding(config), device)
    model = Transformer(without_drops(config.model), backends).to(device)
    use_few_or_many(model, device.type == "cuda")
    return model.eval()


def decoding(config: Config) -> Config:
    """Return the configuration of the same model for writing text, uncompiled and without masks.

    The decoder captures its own pass, and texts have one document each.
    """
    return replace(
        config,
        parallel=replace(config.parallel, compile="off"),
        data=replace(config.data, document_masking=False),
    )


def without_drops(config: ModelConfig) -> ModelConfig:
    """Return the configuration of the same model with a router that drops no tokens.

    Which tokens a full expert drops depends on how many tokens share the forward pass. A text
    that is written token by token has another number in every pass, and other texts beside it.
    """
    if not ROUTERS[config.router_type].has_capacity:
        return config
    return replace(config, eval_capacity_factor=float(max(config.experts_per_layer)))


@torch.no_grad()
def convert_products(model: Transformer, dtype: torch.dtype) -> None:
    """Keep the weights of all matrix products that autocast would convert in `dtype`, in place.

    Otherwise every token would wait until all weights are converted. The results are the same to
    the last bit: embedding, norms and routers stay as they are.
    """
    if dtype == torch.float32:
        return
    if model.lm_head.weight is model.embedding.weight:
        model.lm_head.weight = nn.Parameter(model.embedding.weight.clone())
    for module in model.modules():
        if isinstance(module, nn.Linear | Experts):
            module.to(dtype)


def _longest(prompts: Sequence[list[int]]) -> int:
    """Return the number of tokens of the longest prompt and of the end of text before it."""
    return 1 + max(map(len, prompts), default=0)


def _request(options: Options) -> Request:
    """Return the request that the options stand for. Raises ConfigError for an unknown option."""
    for name in options:
        if name not in Options.__annotations__:
            raise ConfigError(f"{name}: no such option{nearest(name, Options.__annotations__)}")
    stop = options.get("stop", ())
    defaults = Sampling()
    return Request(
        max_tokens=options.get("max_tokens", Request.max_tokens),
        sampling=Sampling(
            temperature=options.get("temperature", defaults.temperature),
            top_k=options.get("top_k", defaults.top_k),
            top_p=options.get("top_p", defaults.top_p),
            min_p=options.get("min_p", defaults.min_p),
        ),
        seed=options.get("seed", Request.seed),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
