"""From text to batches: documents, a tokenizer, token shards on disk, deterministic batches.

Nothing here imports torch until a batch is moved to a device, because the processes that
tokenize import this package too.
"""

from moebius.data.batches import Batches, check_evaluable, evaluation_windows
from moebius.data.corpus import Corpus
from moebius.data.feed import Feed, on_device
from moebius.data.prepare import prepare, reopen
from moebius.data.sources import Document, documents
from moebius.data.stream import TokenStream, open_split, verify
from moebius.data.tokenizer import Tokenizer

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "Feed",
    "TokenStream",
    "Tokenizer",
    "check_evaluable",
    "documents",
    "evaluation_windows",
    "on_device",
    "open_split",
    "prepare",
    "reopen",
    "verify",
]
