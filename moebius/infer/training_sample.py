"""Let the model of a run write a text while it is being trained, without a copy of its weights."""

from collections.abc import Callable

import torch

from moebius.config import Config
from moebius.errors import MoebiusError
from moebius.hardware.backends import backends_for
from moebius.hardware.precision import matmul_dtype
from moebius.infer.language_model import LanguageModel, decoding, without_drops
from moebius.model.transformer import Transformer
from moebius.moe.few_tokens import use_few_or_many
from moebius.observe.sink import Sample
from moebius.train.session import Session


class TrainingSamples:
    """Writes a text that follows the run's prompt, with the weights of the latest step.

    The text depends on the weights and the prompt alone. Nothing of the training depends on it:
    the random numbers are its own, and the model is another module with the same weights, which
    is not compiled and has no masks.
    """

    def __init__(self, session: Session):
        self._session = session
        self.prompt = "def " if session.config.data.source == "python-stdlib" else ""
        """What every text begins with."""
        self.latest: Sample | None = None
        """The text of the latest step that has one."""

    def __call__(self, stopped: Callable[[], bool] = lambda: False) -> Sample | None:
        """Return a new text. None if `stopped` has come true, or the model cannot write one.

        It is called before each token.
        """
        session, state = self._session, self._session.state
        num_tokens = session.config.observe.sample_tokens
        model = LanguageModel(
            sharing(state.model, session.config, session.device),
            session.corpus.tokenizer,
            session.config.train.longest_seq_len(state.tokens),
            matmul_dtype(session.config.train, session.device),
        )
        text = self.prompt
        try:
            for piece in model.stream(self.prompt, max_tokens=num_tokens):
                text += piece
                if stopped():
                    return None
        except MoebiusError:  # logits that are not finite; the run has its own rules for these
            return None
        self.latest = Sample(state.step, self.prompt, text)
        return self.latest


def sharing(model: Transformer, config: Config, device: torch.device) -> Transformer:
    """Return a model that is prepared to write text, and shares its weights with `model`."""
    with torch.device("meta"):
        view = Transformer(without_drops(config.model), backends_for(decoding(config), device))
    view.load_state_dict(model.state_dict(), assign=True)
    use_few_or_many(view, device.type == "cuda")
    return view.eval()
