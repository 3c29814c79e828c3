"""Text from a model, one token after the other."""

from collections.abc import Iterator

import torch

from moebius.data import Tokenizer
from moebius.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text that follows `prompt`, piece by piece, until the end-of-text token or `max_tokens`.

    context: tokens the model was trained on at once; older ones are forgotten. temperature 0 takes the likeliest token.
    The model is read anew for every token (there is no cache): meant for looking at a run, not for serving.
    """
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    first = len(tokens)
    written = ""
    for _ in range(max_tokens):
        window_1S = torch.tensor([tokens[-context:]], device=device)
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
