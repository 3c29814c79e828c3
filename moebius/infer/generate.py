"""Generate text from a model, one token at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from moebius.config import ParallelConfig
from moebius.data import Tokenizer
from moebius.errors import CheckpointError
from moebius.hardware.backends import backends_for
from moebius.model.transformer import Transformer
from moebius.train import checkpoint, checkpoint_store
from moebius.train.run_directory import RunDirectory
from moebius.train.state import load_model


def load_trained(
    run: RunDirectory, device: torch.device, report: Callable[[str], None] = print
) -> Transformer:
    """Return the model of a run's newest intact checkpoint, in evaluation mode.

    `report` gets a line for each damaged checkpoint that is skipped. Raises CheckpointError
    if none is intact.
    """
    config = run.config()
    # The model is not compiled, because a text grows with every token, and every length would be
    # compiled again.
    uncompiled = replace(config, parallel=ParallelConfig(compile="off"))
    model = Transformer(config.model, backends_for(uncompiled, device)).to(device)

    def load(folder: Path) -> None:
        load_model(model, checkpoint.load(folder)[0].get("model", {}), folder)

    if checkpoint_store.load_newest(run.checkpoints, load, report) is None:
        raise CheckpointError(f"{run.checkpoints}: no checkpoint yet; train the run first")
    return model.eval()


@torch.no_grad()
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[str]:
    """Yield the text that follows `prompt`, piece by piece.

    It ends with the end-of-text token or after `max_tokens` tokens. `context` is the length of the
    sequences that the model was trained on; the model does not see older tokens. A temperature of
    0 takes the most likely token. `dtype` is that of the matrix products, as in training. The
    model reads all tokens again for every new one (there is no KV cache): this is for looking at a
    run, not for serving.
    """
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    prompt_length = len(tokens)
    written = ""
    for _ in range(max_tokens):
        window_1S = torch.tensor([tokens[-context:]], device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits_V = model(window_1S).logits_BSV[0, -1].float()
        logits_V[tokenizer.size :] = -torch.inf  # rows of a padded vocabulary stand for no token
        token = _sample(logits_V, temperature, generator)
        if token == tokenizer.end_of_text:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens[prompt_length:])
        if not text.endswith("\ufffd"):  # a character may take several tokens
            yield text[len(written) :]
            written = text


def _sample(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return the id of a token drawn from the logits."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
