"""Recognize compressed data by its first bytes, and read it as what it contains."""

import gzip
import io
import lzma
import re
import zlib
from io import BufferedReader
from typing import Any, cast

COMPRESSIONS = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
}
"""Compressions by suffix."""
_STARTS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
}
_BZ2_START = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18....", re.DOTALL)
"""Matches the beginning of a frame without text, such as pzstd writes before each other one. The
last four bytes are the number of those that follow. (RFC 8878, section 3.1.2)"""


def compression_of(head: bytes) -> str:
    """Return the compression that a file's first bytes announce, or ""."""
    while _SKIPPABLE.match(head):
        head = head[8 + int.from_bytes(head[4:8], "little") :]
        if not head:  # lz4 has the same frames, but hardly so long ones
            return "zstd"
    if _BZ2_START.match(head):
        return "bz2"
    return next((name for mark, name in _STARTS.items() if head.startswith(mark)), "")


def decompressed(raw: BufferedReader, compressions: tuple[str, ...]) -> BufferedReader:
    """Return the contents of an open file without the compressions, the outermost one first.

    Reading damaged or incomplete data raises an error for which `is_damage` is true.
    """
    opened: Any = raw
    for compression in compressions:
        if compression == "xz":
            stream: Any = _XzStreams(opened)
        elif compression == "gzip":  # pyarrow does not accept zero bytes at the end
            stream = gzip.GzipFile(fileobj=opened, mode="rb")
        else:
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(opened, "r"), compression)
        opened = BufferedReader(cast(Any, stream))
    return opened


def is_damage(error: BaseException) -> bool:
    """Return whether an error means damaged or incomplete compressed data.

    The errors of gzip and of pyarrow's decompressors are OSErrors without a number.
    """
    is_unnumbered = isinstance(error, OSError) and error.errno is None
    return is_unnumbered or isinstance(error, EOFError | lzma.LZMAError | zlib.error)


class _XzStreams(io.RawIOBase):
    """The contents of xz streams, one after another, with zero bytes around them as padding.

    `lzma.LZMAFile` reads several streams too, but it stops without an error where anything else
    follows one of them, so that the streams behind zero bytes or behind damage are lost.
    """

    def __init__(self, packed: BufferedReader):
        self._packed = packed
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0")
                while not data:
                    if not (more := self._packed.read(io.DEFAULT_BUFFER_SIZE)):
                        return 0
                    data = more.lstrip(b"\0")
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._decompressor.needs_input:
                if not (data := self._packed.read(io.DEFAULT_BUFFER_SIZE)):
                    raise EOFError("the data ends before the end of the xz stream")
            else:
                data = b""
            if contents := self._decompressor.decompress(data, len(buffer)):
                buffer[: len(contents)] = contents
                return len(contents)
