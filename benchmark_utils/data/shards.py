"""Token shards: binary files of a tokenized corpus.

    from benchmark_utils.data.shards import write_shard
    write_shard("my_train_000001.bin", [numpy.array([50256, 40, 1101])])
"""
import functools
import glob
import itertools
import os
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

import numpy as np

from benchmark_utils.data.token_file import (
    HEADER_BYTES,
    MAGIC,
    MAX_TOKENS,
    TOKEN_DTYPE,
    VERSION,
    TokenFile,
    naming,
)

# Tokens checked at once, 16 MiB.
CHUNK_TOKENS = 2**23


@functools.cache
def _check_token_ids(path, vocab_size, size, mtime_ns):
    """Check a shard, once per process and version of the file."""
    shard = TokenFile(path)
    for start in range(0, len(shard), CHUNK_TOKENS):
        tokens = shard[start:start + CHUNK_TOKENS]
        if tokens.max() >= vocab_size:
            position = int(np.argmax(tokens >= vocab_size))
            raise ValueError(
                f"{path} holds the token id {tokens[position]} at position "
                f"{start + position}, outside the vocabulary of {vocab_size} "
                "tokens. It was written with another tokenizer, or is corrupt."
            )


class TokenShards:
    """Token shards of a corpus, in order.

    Opening checks every header and file size, and reads no tokens.

    Parameters
    ----------
    paths : list of str or Path
        At least one, in the order of the corpus.
    vocab_size : int
        All token ids must be below it.

    Attributes
    ----------
    arrays : list of TokenFile, one per shard
        Sliced, they are arrays of uint16.
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
        self.arrays = [TokenFile(path) for path in self.paths]
        self.num_tokens = sum(len(tokens) for tokens in self.arrays)

    def check_token_ids(self, num_shards=None):
        """Check every token id of the first ``num_shards`` shards (default:
        all), once per process and file; raise ``ValueError`` if one is not in
        the vocabulary."""
        def check(path):
            info = os.stat(path)
            _check_token_ids(
                path, self.vocab_size, info.st_size, info.st_mtime_ns
            )

        # The full corpus has 20 GB: threads use the full speed of the disk.
        with ThreadPoolExecutor() as pool:
            list(pool.map(check, self.paths[:num_shards]))


def write_shard(path, arrays, vocab_size=2**16):
    """Write one shard from a stream of token arrays.

    The file gets its name once it is complete: ``path`` is never half a shard.

    Parameters
    ----------
    path : str or Path
        Its folder is created if needed; an existing file is replaced.
    arrays : iterable of array-like of int, shape [any]
        Token ids in [0, vocab_size).
    vocab_size : int
        At most 65,536, the limit of uint16.

    Returns
    -------
    num_tokens : int

    Raises
    ------
    ValueError
        If an id does not fit, or there are no tokens or 2**31 or more.
    OSError
        If the file can't be written.
    """
    path = Path(path)
    if not 1 <= vocab_size <= 2**16:
        raise ValueError(
            f"vocab_size is {vocab_size}; uint16 tokens allow 1 to {2**16}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    num_tokens = 0
    try:
        with naming(path), open(temporary, "xb") as file:
            file.write(bytes(HEADER_BYTES))
            for tokens in arrays:
                tokens = _checked(tokens, vocab_size, path)
                num_tokens += len(tokens)
                if num_tokens > MAX_TOKENS:
                    raise ValueError(
                        f"{path} would hold {num_tokens} tokens; a shard "
                        f"holds at most {MAX_TOKENS}. Use write_shards."
                    )
                file.write(tokens.tobytes())
            if num_tokens == 0:
                raise ValueError(f"There are no tokens to write to {path}.")
            file.seek(0)
            file.write(struct.pack("<3i", MAGIC, VERSION, num_tokens))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return num_tokens


def write_shards(folder, prefix, arrays, vocab_size=2**16,
                 shard_tokens=10**8):
    """Write a stream of token arrays, of any length, as consecutive shards.

    Only one array is in memory at a time.

    Parameters
    ----------
    folder : str or Path
    prefix : str
        The names are {prefix}_000001.bin, {prefix}_000002.bin, ...
    arrays, vocab_size
        As for ``write_shard``.
    shard_tokens : int
        Tokens in every shard except the last.

    Returns
    -------
    paths : list of Path

    Raises
    ------
    FileExistsError
        If the folder has shards of this prefix.
    OSError, ValueError
        As for ``write_shard``; the shards written so far are removed.
    """
    folder = Path(folder)
    if not 1 <= shard_tokens <= MAX_TOKENS:
        raise ValueError(
            f"shard_tokens={shard_tokens} must be from 1 to {MAX_TOKENS}."
        )
    if present := sorted(folder.glob(f"{glob.escape(prefix)}_*.bin")):
        raise FileExistsError(
            f"{folder} already holds {present[0].name} (and "
            f"{len(present) - 1} more). Delete them or use another folder."
        )

    def pieces():
        """Yield the arrays cut where a shard is full, as (shard, tokens)."""
        num_tokens = 0
        for tokens in arrays:
            tokens = _checked(tokens, vocab_size, folder / prefix)
            while len(tokens):
                shard, filled = divmod(num_tokens, shard_tokens)
                piece = tokens[:shard_tokens - filled]
                yield shard, piece
                num_tokens += len(piece)
                tokens = tokens[len(piece):]

    paths = []
    try:
        for shard, group in itertools.groupby(pieces(), key=itemgetter(0)):
            paths.append(folder / f"{prefix}_{shard + 1:06d}.bin")
            write_shard(paths[-1], map(itemgetter(1), group), vocab_size)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    if not paths:
        raise ValueError(f"There are no tokens to write to {folder}.")
    return paths


def _checked(tokens, vocab_size, path):
    """Return an array as 1-D uint16 tokens, or raise ``ValueError``."""
    tokens = np.asarray(tokens)
    # NumPy makes an empty list an array of floats: allow it.
    if tokens.ndim != 1 or (
        len(tokens) and not np.issubdtype(tokens.dtype, np.integer)
    ):
        raise ValueError(
            f"{path}: token arrays must be one-dimensional integers, got "
            f"shape {tokens.shape} of {tokens.dtype}."
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"{path}: token ids from {tokens.min()} to {tokens.max()} do not "
            f"fit the vocabulary of {vocab_size} tokens."
        )
    return tokens.astype(TOKEN_DTYPE, copy=False)
