"""Reader of a token shard's file.

The format is llm.c's (``dev/data/data_common.py``), which modded-nanogpt's
GPT-2 shards use too: a header of 256 little-endian int32 (1,024 bytes), the
first three being the magic number 20240520, the version 1 and the number of
tokens; then the tokens as little-endian uint16.
"""
import contextlib
import os
import stat
import struct
import weakref
from pathlib import Path

import numpy as np

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 4 * 256
TOKEN_DTYPE = np.dtype("<u2")
# The token count is an int32 in the header.
MAX_TOKENS = 2**31 - 1


class TokenFile:
    """The tokens of one shard, read from the file when they are indexed.

    Opening checks the header and reads nothing else. The file is not mapped:
    if a mapped file were cut off or its disk failed, SIGBUS would kill the
    process, and the pages it had read would count as its memory.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    OSError
        If the file is missing or can't be read, now or when indexed.
    ValueError
        If it is not a complete token shard, or no longer one when indexed.
    """

    def __init__(self, path):
        self.path = Path(path)
        # Opening a pipe would block until somebody writes to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(
                f"{path} is a folder, pipe or device; expected a token shard."
            )
        # The descriptor stays open, so that a file that is replaced or deleted
        # in the meantime can still be read.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        with naming(path):
            header = os.pread(self._descriptor, HEADER_BYTES, 0)
        self._num_tokens = _check_header(path, header, self._size())

    def __len__(self):
        return self._num_tokens

    def __getitem__(self, index):
        """Read one token, or a slice of step 1 as a read-only np.ndarray of
        uint16, shape [num_tokens]."""
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return self._read(chosen, chosen + 1)[0]
        if chosen.step != 1:
            raise IndexError(f"The step of a slice is {chosen.step}, not 1.")
        return self._read(chosen.start, chosen.stop)

    def __reduce__(self):
        """Reopen the file in another process: descriptors are not shared."""
        return TokenFile, (self.path,)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or TOKEN_DTYPE, copy=False)

    def _size(self):
        return os.fstat(self._descriptor).st_size

    def _read(self, start, stop):
        offset = HEADER_BYTES + TOKEN_DTYPE.itemsize * start
        remaining = TOKEN_DTYPE.itemsize * max(0, stop - start)
        pieces = []
        while remaining:
            with naming(self.path):
                piece = os.pread(self._descriptor, remaining, offset)
            if not piece:
                raise ValueError(
                    f"{self.path} was cut off while it was in use: it had "
                    f"{len(self)} tokens when it was opened, and now ends at "
                    f"byte {self._size()}. Restore "
                    "it, and start the run again."
                )
            pieces.append(piece)
            offset += len(piece)
            remaining -= len(piece)
        return np.frombuffer(b"".join(pieces), TOKEN_DTYPE)


@contextlib.contextmanager
def naming(path):
    """Add the file's name to an ``OSError`` of reading or writing: it has an
    errno and no subclass, unlike the network errors of a token stream."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _check_header(path, header, size):
    """Return the number of tokens of a shard of ``size`` bytes, or raise
    ``ValueError``."""
    if len(header) < HEADER_BYTES:
        raise ValueError(
            f"{path} has {len(header)} bytes, but the header of a token "
            f"shard alone has {HEADER_BYTES}. The file is empty or cut off: "
            "delete it and fetch or write it again."
        )
    magic, version, num_tokens = struct.unpack_from("<3i", header)
    if magic != MAGIC:
        raise ValueError(
            f"{path} starts with the magic number {magic}, a GPT-2 token "
            f"shard with {MAGIC}. It is another kind of file. If it is "
            "nanoGPT's, uint16 tokens without a header, make a shard of it "
            "with write_shard: see docs/data.rst, \"Tokens\"."
        )
    if version != VERSION:
        raise ValueError(
            f"{path} is a token shard of version {version}; only version "
            f"{VERSION} (uint16 tokens) is understood."
        )
    if num_tokens < 1:
        raise ValueError(
            f"{path} claims to hold {num_tokens} tokens; expected at least 1."
        )
    expected = HEADER_BYTES + TOKEN_DTYPE.itemsize * num_tokens
    if size != expected:
        problem = "cut off" if size < expected else "too long"
        raise ValueError(
            f"{path} is {problem}: its header claims {num_tokens} tokens, "
            f"which is {expected} bytes, but the file has {size}. "
            "Delete it and fetch or write it again."
        )
    return num_tokens
