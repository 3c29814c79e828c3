"""A language model as lm-evaluation-harness calls it. Importing this needs the harness."""

from typing import Any

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

from moebius.infer.language_model import LanguageModel
from moebius.infer.scoring import Text, scores

MAX_TOKENS = 256
"""Largest number of tokens of an answer whose task does not say: the default of the harness."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names that tasks have for it, as the harness reads them."""


class HarnessModel(TemplateLM):
    """Scores and writes texts. Each begins with the end-of-text token, as in training."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.model.tokenizer.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return the ids of a text, without special tokens."""
        return self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one."""
        texts = []
        for _, context, continuation in requests:
            # An empty context is the end-of-text token already, which no text can spell.
            given = (
                context if context[:1] == [self.eot_token_id] else [self.eot_token_id, *context]
            )
            texts.append(Text([*given, *continuation], len(given)))
        return [(one.log_probability, one.is_greedy) for one in scores(self.model, texts)]

    def loglikelihood_rolling(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each text."""
        texts = [
            Text([self.eot_token_id, *self.tok_encode(request.args[0])], 1) for request in requests
        ]
        return [score.log_probability for score in scores(self.model, texts)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each prompt. Those with the same options are written together.

        The length of the prompt and of the answer together may exceed the context; what is then
        read is explained in moebius/infer/window.py.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            options = _options(requests[numbers[0]].args[1])
            prompts = [requests[number].args[0] for number in numbers]
            written = self.model.generate_all(prompts, **options)
            for number, (text,) in zip(numbers, written, strict=True):
                texts[number] = text
        return texts


def _options(wanted: dict[str, Any]) -> Any:
    """Return the options of `LanguageModel.generate` for those of a task."""
    until = wanted.get("until") or []
    length = next((wanted[name] for name in LENGTHS if wanted.get(name) is not None), MAX_TOKENS)
    temperature = float(wanted.get("temperature") or 0.0)
    if wanted.get("do_sample") is False:
        temperature = 0.0
    options: dict[str, Any] = {
        "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
        "max_tokens": int(length),
        "temperature": temperature,
    }
    return options | {
        name: wanted[name] for name in ("top_k", "top_p", "min_p") if wanted.get(name) is not None
    }
