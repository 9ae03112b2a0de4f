"""Token shards: the binary files that hold a tokenized corpus.

The format is the one of llm.c (``dev/data/data_common.py``) that
modded-nanogpt's GPT-2 shards use: a header of 256 little-endian int32
(1,024 bytes) of which the first three are the magic number 20240520, the
version 1 and the number of tokens, then the tokens as little-endian uint16.

    from benchmark_utils.shards import write_shard
    write_shard("my_train_000001.bin", [numpy.array([50256, 40, 1101])])
"""
import functools
import os
import stat
import tempfile
from pathlib import Path

import numpy as np

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_DTYPE = np.dtype("<u2")
# The token count is an int32 in the header.
MAX_TOKENS = 2**31 - 1


def open_shard(path):
    """Memory-map the tokens of one shard, after checking the whole header.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    tokens : np.ndarray of uint16, shape [num_tokens]
        Read-only view of the file: nothing is read until it is indexed.

    Raises
    ------
    OSError
        If the file is missing or can't be read.
    ValueError
        If it is not a complete token shard. The message names the file, what
        was found and what was expected.
    """
    path = Path(path)
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path} is not a regular file.")
    if info.st_size < HEADER_BYTES:
        raise ValueError(
            f"{path} has {info.st_size} bytes, but the header of a token "
            f"shard alone has {HEADER_BYTES}. The file is empty or cut off: "
            "delete it and fetch or write it again."
        )
    header = np.fromfile(path, dtype="<i4", count=3)
    magic, version, num_tokens = (int(value) for value in header)
    if magic != MAGIC:
        raise ValueError(
            f"{path} starts with the magic number {magic}, a GPT-2 token "
            f"shard with {MAGIC}. It is another kind of file."
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
    if info.st_size != expected:
        problem = "cut off" if info.st_size < expected else "too long"
        raise ValueError(
            f"{path} is {problem}: its header claims {num_tokens} tokens, "
            f"which is {expected} bytes, but the file has {info.st_size}. "
            "Delete it and fetch or write it again."
        )
    tokens = np.memmap(
        path, dtype=TOKEN_DTYPE, mode="r", offset=HEADER_BYTES,
        shape=(num_tokens,),
    )
    # The plain view: slicing the np.memmap subclass is several times slower.
    return tokens.view(np.ndarray)


@functools.lru_cache(maxsize=None)
def _check_token_ids(path, vocab_size, size, mtime_ns):
    """Read a shard once per process and version of the file."""
    tokens = open_shard(path)
    if tokens.max() >= vocab_size:
        position = int(np.argmax(tokens >= vocab_size))
        raise ValueError(
            f"{path} holds the token id {tokens[position]} at position "
            f"{position}, outside the vocabulary of {vocab_size} tokens. It "
            "was written with another tokenizer, or is corrupt."
        )


class TokenShards:
    """An ordered list of validated, memory-mapped token shards.

    Opening checks every header and file size and reads nothing else;
    ``check_token_ids`` reads the tokens.

    Parameters
    ----------
    paths : list of str or Path
        At least one shard, in the order of the corpus.
    vocab_size : int
        Every token id must be below it.

    Attributes
    ----------
    arrays : list of np.ndarray of uint16, one per shard
    num_tokens : int

    Raises
    ------
    OSError, ValueError
        If the list is empty or one file is not a complete token shard.
    """

    def __init__(self, paths, vocab_size):
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise ValueError("A corpus needs at least one token shard.")
        self.vocab_size = vocab_size
        self.arrays = [open_shard(path) for path in self.paths]
        self.num_tokens = sum(len(tokens) for tokens in self.arrays)

    def check_token_ids(self, num_shards=None):
        """Read the first ``num_shards`` shards (all by default) and check
        that every token id is in the vocabulary, once per process and file.

        Raises ``ValueError`` naming the file, the id and its position.
        """
        for path in self.paths[:num_shards]:
            info = os.stat(path)
            _check_token_ids(
                path, self.vocab_size, info.st_size, info.st_mtime_ns
            )


def write_shard(path, arrays, vocab_size=2**16):
    """Write one shard from a stream of token arrays.

    The shard is written under a temporary name beside ``path`` and renamed
    when it is complete: whatever happens, ``path`` is never half a shard.

    Parameters
    ----------
    path : str or Path
        Its folder is created if needed; an existing file is replaced.
    arrays : iterable of array-like of int, shape [any]
        Token ids in [0, vocab_size).
    vocab_size : int
        At most 65,536, what uint16 can hold.

    Returns
    -------
    num_tokens : int

    Raises
    ------
    ValueError
        If an id does not fit, or there are no tokens, or 2**31 or more.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not 1 <= vocab_size <= 2**16:
        raise ValueError(
            f"vocab_size is {vocab_size}; uint16 tokens allow 1 to {2**16}."
        )
    num_tokens = 0
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    ) as file:
        try:
            file.write(bytes(HEADER_BYTES))
            for tokens in arrays:
                tokens = _checked(tokens, vocab_size, path)
                num_tokens += len(tokens)
                if num_tokens > MAX_TOKENS:
                    raise ValueError(
                        f"{path} would hold {num_tokens} tokens; a shard "
                        f"holds at most {MAX_TOKENS}. Use write_shards."
                    )
                file.write(tokens.astype(TOKEN_DTYPE).tobytes())
            if num_tokens == 0:
                raise ValueError(f"There are no tokens to write to {path}.")
            header = np.zeros(HEADER_INTS, dtype="<i4")
            header[:3] = MAGIC, VERSION, num_tokens
            file.seek(0)
            file.write(header.tobytes())
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return num_tokens


def _checked(tokens, vocab_size, path):
    """The array as 1-D integers of the vocabulary, or a ValueError."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{path}: token arrays must be one-dimensional integers, got "
            f"shape {tokens.shape} of {tokens.dtype}."
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"{path}: token ids from {tokens.min()} to {tokens.max()} do not "
            f"fit the vocabulary of {vocab_size} tokens."
        )
    return tokens


def _umask():
    """The process's umask: temporary files are private, shards need not be.
    """
    mask = os.umask(0)
    os.umask(mask)
    return mask
