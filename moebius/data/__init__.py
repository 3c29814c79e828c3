"""Documents in, tokenizer, token shards on disk, deterministic batches out."""

from moebius.data.batches import Batches, check_evaluable, evaluation_windows
from moebius.data.prepare import Corpus, prepare
from moebius.data.sources import Document, documents
from moebius.data.stream import TokenStream, open_split, verify
from moebius.data.tokenizer import Tokenizer

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "TokenStream",
    "Tokenizer",
    "check_evaluable",
    "documents",
    "evaluation_windows",
    "open_split",
    "prepare",
    "verify",
]
