"""Documents in, tokenizer, token shards on disk, deterministic batches out."""

from moebius.data.batches import Batches, evaluation_windows
from moebius.data.prepare import Corpus, prepare
from moebius.data.shards import TokenStream
from moebius.data.tokenizer import Tokenizer

__all__ = ["Batches", "Corpus", "TokenStream", "Tokenizer", "evaluation_windows", "prepare"]
