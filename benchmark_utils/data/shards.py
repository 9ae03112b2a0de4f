"""Token shards: the binary files that hold a tokenized corpus.

The format is the one of llm.c (``dev/data/data_common.py``) that
modded-nanogpt's GPT-2 shards use: a header of 256 little-endian int32
(1,024 bytes) of which the first three are the magic number 20240520, the
version 1 and the number of tokens, then the tokens as little-endian uint16.

    from benchmark_utils.data.shards import write_shard
    write_shard("my_train_000001.bin", [numpy.array([50256, 40, 1101])])
"""
import contextlib
import functools
import glob
import itertools
import os
import secrets
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

import numpy as np

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 4 * 256
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
    # Before opening it: opening a pipe waits for whoever writes to it.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(
            f"{path} is a folder, pipe or device; expected a token shard."
        )
    with _naming(path), open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
        num_tokens = _check_header(
            path, header, os.fstat(file.fileno()).st_size
        )
        tokens = np.memmap(
            file, dtype=TOKEN_DTYPE, mode="r", offset=HEADER_BYTES,
            shape=(num_tokens,),
        )
    # The plain view: slicing the np.memmap subclass is several times slower.
    return tokens.view(np.ndarray)


@contextlib.contextmanager
def _naming(path):
    """Say which file an ``OSError`` is about: those of reading, writing and
    mapping an open file don't. They have an errno and no class of their own,
    unlike those of a network that the tokens may come from."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _check_header(path, header, size):
    """Return the number of tokens of a shard of ``size`` bytes whose first
    bytes are ``header``, or raise a ``ValueError``."""
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
    if size != expected:
        problem = "cut off" if size < expected else "too long"
        raise ValueError(
            f"{path} is {problem}: its header claims {num_tokens} tokens, "
            f"which is {expected} bytes, but the file has {size}. "
            "Delete it and fetch or write it again."
        )
    return num_tokens


@functools.cache
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
        def check(path):
            info = os.stat(path)
            _check_token_ids(
                path, self.vocab_size, info.st_size, info.st_mtime_ns
            )

        # 20 GB at full size: as fast as the disk.
        with ThreadPoolExecutor() as pool:
            list(pool.map(check, self.paths[:num_shards]))


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
    OSError
        If the file can't be written, because the disk is full for example.
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
        with _naming(path), open(temporary, "xb") as file:
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
    """Write a stream of token arrays as consecutive shards.

    The arrays may be of any length; they are cut where a shard is full, and
    only one is in memory at a time.

    Parameters
    ----------
    folder : str or Path
    prefix : str
        The files are {prefix}_000001.bin, {prefix}_000002.bin and so on.
    arrays, vocab_size
        As for ``write_shard``.
    shard_tokens : int
        Tokens in each shard but the last.

    Returns
    -------
    paths : list of Path

    Raises
    ------
    FileExistsError
        If the folder has shards of this prefix: they would be mixed up.
    OSError, ValueError
        As ``write_shard``. The shards written until then are removed.
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
    """The array as 1-D uint16 tokens of the vocabulary, or a ValueError."""
    tokens = np.asarray(tokens)
    # NumPy makes an empty list an array of floats: nothing is wrong with it.
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
