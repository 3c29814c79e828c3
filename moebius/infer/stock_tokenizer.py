"""The tokenizer files of an export: what `AutoTokenizer` needs to give the ids of training.

Every text begins with the end-of-text token, as every document did in training, and a text that
spells the name of that token is ordinary text.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from moebius.data import Tokenizer
from moebius.infer.stock_files import write_json

FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, seq_len: int) -> None:
    """Write the three files. Raises OSError."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    name = inner.id_to_token(tokenizer.end_of_text)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{name} $A",
        pair=f"{name} $A {name} $B",
        special_tokens=[(name, tokenizer.end_of_text)],
    )
    (folder / FILE).write_bytes(inner.to_str(pretty=False).encode())
    special = {f"{use}_token": name for use in ("bos", "eos", "pad")}
    write_json(folder / SPECIAL, special)
    settings: dict[str, Any] = {
        # For some model types, transformers takes another class than the file's unless it is
        # named, and version 4 does not know the name that version 5 writes.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": seq_len,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # Otherwise, a text could spell the end-of-text token.
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / SETTINGS, settings)
