"""The decoder with a KV cache, which computes only what is new, and drafts tokens with MTP.

Every call of the model has the same shapes, whatever the texts' lengths. On a GPU it is captured
in a CUDA graph, because launching its several hundred kernels one by one takes longer than
running them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moebius.config import MTP_OFFSETS
from moebius.config.routers import ROUTERS
from moebius.errors import ConfigError
from moebius.infer.decoder import Writing, check_highest
from moebius.infer.sampling import Sampling, draw, probabilities
from moebius.infer.speculation import verified
from moebius.infer.window import window_start
from moebius.model.incremental import fill, new_cache, step
from moebius.model.transformer import Transformer

SLOT_MULTIPLE = 64
"""The lengths of the cache and of what is read at once are multiples of this, because kernels are
tuned for each number of rows."""
WARM_UP = 3
"""Calls before the capture, in which kernels are compiled and tuned."""


class Cached:
    """Decodes up to `num_texts` texts at once with a KV cache that is allocated once."""

    def __init__(
        self,
        model: Transformer,
        num_ids: int,
        context: int,
        sampling: Sampling,
        num_texts: int = 1,
        longest: int | None = None,
        dtype: torch.dtype = torch.float32,
        speculates: bool = False,
    ):
        """Allocate the cache.

        num_ids: number of the tokenizer's ids. The further rows of a padded vocabulary stand for
        no token.
        context: the largest number of tokens that the model reads at once.
        longest: the largest number of tokens of any text, if that is less than the context.
        dtype: that of the matrix products. Other than float32, they run under autocast.
        speculates: draft tokens with the model's MTP layer and verify them in one pass.

        Raises ConfigError if the model would not be one function of a text: it is in training, or
        its router drops tokens, depending on the other tokens of the pass. It is raised too if
        the model should speculate without MTP.
        """
        check_causal(model)
        if speculates and model.mtp is None:
            raise ConfigError(
                "speculate=True: needs a model with multi-token prediction (model.use_mtp), "
                "whose offsets draft the tokens"
            )
        self.num_drafted = len(MTP_OFFSETS) if speculates else 0
        self.num_passes = 0
        """Number of a text's forward passes that may have accepted drafted tokens."""
        self.num_accepted = 0
        """Number of drafted tokens that were accepted in them."""
        self._model, self._num_ids, self._context = model, num_ids, context
        self._sampling = sampling
        self._device = model.embedding.weight.device
        self._dtype = dtype
        slots = _rounded_up(min(context, longest or context) + self.num_drafted)
        cached = None if dtype == torch.float32 else dtype
        self._cache = new_cache(model, num_texts, slots, cached)
        self._start: list[int | None] = [None] * num_texts
        """Index of the first token of each text that is in the cache."""
        O, wide = (
            self.num_drafted,
            torch.promote_types(model.embedding.weight.dtype, torch.float32),
        )
        self._input_BX = torch.zeros(num_texts, 3, dtype=torch.long, device=self._device)
        """Each text's last token, its position, and how many drafted tokens may be accepted."""
        self._uniform_BX = torch.zeros(
            num_texts, 2 * O + 1, dtype=torch.float64, device=self._device
        )
        self._draft_BO = torch.zeros(num_texts, O, dtype=torch.long, device=self._device)
        self._q_BOV = torch.zeros(num_texts, O, num_ids, dtype=wide, device=self._device)
        self._result_BX = torch.zeros(num_texts, O + 2, dtype=torch.long, device=self._device)
        """Number of accepted tokens, the drafted tokens, and the token after those accepted."""
        self._highest_B = torch.zeros(num_texts, dtype=wide, device=self._device)
        """Each text's highest logit, or the first highest logit that is not finite."""
        self._run = _captured(self._step) if self._device.type == "cuda" else self._step

    def begin(self) -> None:
        """Forget all texts, so that the next call decodes others."""
        self._start = [None] * len(self._start)

    @torch.no_grad()
    def advance(self, texts: Sequence[Writing]) -> list[list[int]]:
        """Return the next tokens of each text that is not done; several if it speculates."""
        has_draft = [start is not None for start in self._start]
        self._read_beginnings(texts)
        # A place without a text reads the token 0 at position 0.
        inputs = [[0, 0, 0] for _ in self._start]
        uniform = [[0.0] * (2 * self.num_drafted + 1) for _ in self._start]
        for row, text in enumerate(texts):
            if text.is_done:
                continue
            position = len(text.tokens) - 1 - (self._start[row] or 0)
            # Drafted tokens past the context would be read by a model that forgets its beginning.
            limit = min(self.num_drafted, self._context - position - 1) if has_draft[row] else 0
            inputs[row] = [text.tokens[-1], position, limit]
            uniform[row] = text.uniform(2 * self.num_drafted + 1)
        self._input_BX.copy_(torch.tensor(inputs))
        self._uniform_BX.copy_(torch.tensor(uniform, dtype=torch.float64))
        self._run()
        results = self._result_BX.tolist()
        highest = self._highest_B.tolist()
        written = []
        for row, text in enumerate(texts):
            if text.is_done:
                written.append([])
                continue
            check_highest(highest[row])
            accepted, *drafted, last = results[row]
            self.num_passes += has_draft[row]
            self.num_accepted += accepted
            written.append([*drafted[:accepted], last])
        return written

    def _read_beginnings(self, texts: Sequence[Writing]) -> None:
        """Read what the cache lacks of each text, except for its last token."""
        rows, windows = [], []
        for row, text in enumerate(texts):
            start = window_start(len(text.tokens), self._context)
            if text.is_done or start == self._start[row]:
                continue
            self._start[row] = start
            if len(text.tokens) - start > 1:
                rows.append(row)
                windows.append(text.tokens[start:-1])
        if not rows:
            return
        length = max(map(len, windows))
        if self._device.type == "cuda":
            length = min(_rounded_up(length), self._cache.num_slots)
        tokens_BS = torch.tensor([window + [0] * (length - len(window)) for window in windows])
        row_B = torch.tensor(rows, device=self._device)
        with self._autocast():
            fill(self._model, self._cache, tokens_BS.to(self._device), row_B=row_B)

    def _autocast(self) -> torch.autocast:
        is_enabled = self._dtype != torch.float32
        # A cache of converted weights would be filled while a graph is captured.
        return torch.autocast(
            self._device.type, self._dtype, enabled=is_enabled, cache_enabled=False
        )

    @torch.no_grad()
    def _step(self) -> None:
        """Read each text's last token and its draft; write the result, and the next draft.

        Inputs and outputs are tensors of this object, which a CUDA graph reads and writes in
        place.
        """
        O = self.num_drafted
        last_B, position_B, limit_B = self._input_BX.unbind(dim=1)
        tokens_BS = torch.cat([last_B[:, None], self._draft_BO], dim=1)
        position_BS = position_B[:, None] + torch.arange(O + 1, device=self._device)
        with self._autocast():
            hidden_BSD = step(self._model, self._cache, tokens_BS, position_BS)
            logits_BSV = self._logits(hidden_BSD)
        p_BSV = probabilities(logits_BSV, self._sampling)
        uniform_BS, uniform_BO = self._uniform_BX.split([O + 1, O], dim=1)
        kept = verified(p_BSV, self._q_BOV, self._draft_BO, limit_B, uniform_BS)
        result = [kept.accepted_B[:, None], self._draft_BO, kept.token_B[:, None]]
        self._result_BX.copy_(torch.cat(result, dim=1))
        highest_BS = logits_BSV.amax(dim=-1)
        broken_B1 = (~highest_BS.isfinite()).long().argmax(dim=1, keepdim=True)
        self._highest_B.copy_(highest_BS.gather(1, broken_B1)[:, 0])
        if O:
            row_B = self._cache.row_B
            self._draft(hidden_BSD[row_B, kept.accepted_B][:, None], uniform_BO)

    def _draft(self, hidden_B1D: Tensor, uniform_BO: Tensor) -> None:
        """Draft the tokens after the next one, from the hidden state that the next comes from."""
        assert self._model.mtp is not None  # `__init__` has checked it
        with self._autocast():
            outputs, _ = self._model.mtp(hidden_B1D, with_stats=False)
            ahead_BOD = torch.cat([ahead_B1D for ahead_B1D, _ in outputs], dim=1)
            bias_OV = torch.stack([bias_V for _, bias_V in outputs])
            logits_BOV = self._logits(ahead_BOD) + bias_OV[:, : self._num_ids]
        q_BOV = probabilities(logits_BOV, self._sampling)
        self._q_BOV.copy_(q_BOV)
        self._draft_BO.copy_(draw(q_BOV, uniform_BO))

    def _logits(self, hidden_BSD: Tensor) -> Tensor:
        """Return the logits of the tokenizer's ids, in float32 or wider."""
        logits_BSV = self._model.lm_head(self._model.norm(hidden_BSD))
        return logits_BSV[..., : self._num_ids].to(self._highest_B.dtype)


def check_causal(model: Transformer) -> None:
    """Raise ConfigError unless the logits of a token depend on the tokens before it alone."""
    config = model.config
    if model.training:
        raise ConfigError("the model is in training mode; call its eval() before generating text")
    most = max(config.experts_per_layer)
    factor = config.eval_capacity_factor or config.capacity_factor
    if ROUTERS[config.router_type].has_capacity and most and factor < most:
        raise ConfigError(
            f"model.eval_capacity_factor={config.eval_capacity_factor}: the {config.router_type} "
            f"router would drop tokens depending on the texts beside them; {most}, the number "
            "of experts, lets it drop none"
        )


def _rounded_up(length: int) -> int:
    return -(-length // SLOT_MULTIPLE) * SLOT_MULTIPLE


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does the work again on the same tensors, captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
