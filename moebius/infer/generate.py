"""Text from a model, one token after the other."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from moebius.config import ParallelConfig
from moebius.data import Tokenizer
from moebius.model.transformer import Transformer
from moebius.train import checkpoint
from moebius.train.run_directory import RunDirectory
from moebius.train.session import backends_for
from moebius.train.state import load_model


def load_trained(run: RunDirectory, device: torch.device, report: Callable[[str], None] = print) -> Transformer:
    """The model of a run's newest intact checkpoint, for evaluation. Raises CheckpointError."""
    config = run.config()
    folder = checkpoint.latest(run.checkpoints, report)
    tensors, _ = checkpoint.load(folder)
    # not compiled: a text grows by a token each time, and every length would be compiled anew
    uncompiled = replace(config, parallel=ParallelConfig(compile="off"))
    model = Transformer(config.model, backends_for(uncompiled, device)).to(device)
    load_model(model, tensors["model"], folder)
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
    """Yield the text that follows `prompt`, piece by piece, until the end-of-text token or `max_tokens`.

    context: tokens the model was trained on at once; older ones are forgotten. temperature 0 takes the likeliest token.
    dtype: of the matrix products, as in training.
    The model is read anew for every token (there is no cache): meant for looking at a run, not for serving.
    """
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    first = len(tokens)
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
        text = tokenizer.decode(tokens[first:])
        if not text.endswith("\ufffd"):  # a character may take several tokens
            yield text[len(written) :]
            written = text


def _sample(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=-1), 1, generator=generator))
