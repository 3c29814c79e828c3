"""Compare our model with a stock one, logit by logit, in float32.

Where two experts' scores are almost equal, float32 rounding decides which of them is chosen, in
either model. Where such a token differs, or one after it in the sequence, the rest of the sequence
is left out and counted.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.errors import NumericError
from moebius.model.transformer import Transformer, routed_layers
from moebius.moe.router import Router, Routing

TIE = 1e-6
"""Scores that differ by less than this count as equal."""
LARGEST = 1e-5
"""Largest difference of logits, relative to the largest logit, that passes as rounding."""

RANDOM_SEQUENCES, RANDOM_TOKENS = 4, 128
"""Number and largest length of the sequences of random tokens that the models are compared on."""

StockLogits = Callable[[Tensor], Tensor]
"""tokens_BS -> logits_BSV of the stock model, for complete sequences without padding."""


class Difference(NamedTuple):
    """How much two models' logits differ."""

    largest: float
    """The largest difference, divided by the largest absolute logit."""
    num_compared: int
    """Number of tokens whose logits were compared."""
    num_left_out: int
    """Number of tokens that were left out because of equal scores."""

    def __str__(self) -> str:
        left_out = f", {self.num_left_out:,} left out" if self.num_left_out else ""
        return f"{self.largest:.1e} over {self.num_compared:,} tokens{left_out}"


def random_tokens(vocab_size: int, seq_len: int) -> Tensor:
    """Return tokens_BS to compare the models on, which are the same every time."""
    size = (RANDOM_SEQUENCES, min(seq_len, RANDOM_TOKENS))
    return torch.randint(vocab_size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def compare(own: Transformer, stock: StockLogits, tokens_BS: Tensor) -> Difference:
    """Return how much the logits differ. A logit that is not finite differs without limit."""
    with _tied_tokens(own) as tied:
        own_BSV = own(tokens_BS).logits_BSV
    theirs_BSV = stock(tokens_BS).float()
    is_tied_BS = torch.zeros(tokens_BS.shape, dtype=torch.bool)
    for layer in tied:
        is_tied_BS |= layer.view(tokens_BS.shape)
    difference_BS = (own_BSV - theirs_BSV).abs().amax(dim=-1) / own_BSV.abs().max()
    if not torch.isfinite(difference_BS).all():
        return Difference(float("inf"), tokens_BS.numel(), 0)
    is_after_tie_BS = is_tied_BS.cumsum(dim=1) > 0
    is_left_out_BS = (is_after_tie_BS & (difference_BS > LARGEST)).cumsum(dim=1) > 0
    compared = difference_BS[~is_left_out_BS]
    largest = float(compared.max()) if len(compared) else 0.0
    return Difference(largest, len(compared), int(is_left_out_BS.sum()))


def check(difference: Difference, what: str, kind: str = "exported") -> None:
    """Raise NumericError if models differ by more than rounding, or could not be compared."""
    if difference.largest > LARGEST:
        raise NumericError(
            f"the {kind} model's logits differ by {difference.largest:.1e} of the largest one "
            f"on {what} (at most {LARGEST:.0e} is rounding); nothing was {kind}"
        )
    if not difference.num_compared:
        raise NumericError(
            f"all tokens of {what} have equal router scores, so that the {kind} model cannot be "
            f"compared; nothing was {kind}"
        )


def stock_model(folder: Path) -> Any:
    """Return the model in a folder as transformers loads it, in float32 and evaluation mode.

    Raises NumericError if transformers cannot load the model, or does not find exactly the tensors
    that it looks for.
    """
    import transformers

    try:
        model, found = _loaded(transformers, folder)
    except Exception as error:  # a model class may raise anything for settings it does not expect
        raise NumericError(
            f"transformers {transformers.__version__} cannot load the model: {_reason(error)}"
        ) from None
    problems = {kind: sorted(map(str, names))[:2] for kind, names in found.items() if names}
    if problems:
        raise NumericError(f"transformers loads the exported model with {problems}")
    return model.eval()


def _loaded(transformers: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model and what transformers says about its tensors, without any output."""
    with _quiet(transformers), warnings.catch_warnings():
        # of a shared MLP of width 0
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def logits_of(model: Any) -> StockLogits:
    """Return the function that computes a stock model's logits of complete sequences.

    It raises NumericError if the model fails.
    """

    def logits(tokens_BS: Tensor) -> Tensor:
        try:
            return model(tokens_BS, use_cache=False).logits
        except Exception as error:  # as when a model is loaded
            raise NumericError(
                f"the model of transformers {version('transformers')} fails: {_reason(error)}"
            ) from None

    return logits


@contextmanager
def _tied_tokens(model: Transformer) -> Iterator[list[Tensor]]:
    """Yield a list that gets, for each router that is called, which tokens have equal scores."""
    tied: list[Tensor] = []

    def note(router: Router, inputs: Any, routing: Routing) -> None:
        scores_TE = routing.probs_TE + router.bias_E
        K = router.record.most_experts(router.num_experts, router.config.router_top_k)
        if router.num_experts > K:
            best = scores_TE.topk(K + 1, dim=-1).values
            tied.append(best[:, K - 1] - best[:, K] < TIE)

    hooks = [layer.router.register_forward_hook(note) for layer in routed_layers(model)]
    try:
        yield tied
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing bars and remarks while it loads a model."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
