"""Notes on verified files, in the subfolder ``.hub`` beside them.

A *record* is what the Hub says of a repository: "commit", and "files", a dict
of name to "size" (bytes) and "sha256" (hexadecimal). A *stamp* is the SHA-256
that was found in one file, with the size and the modification time that the
file had: while these stay the same, it need not be read again.
"""
import contextlib
import json
import operator
import os
import re
import secrets

from huggingface_hub.utils.sha import sha_fileobj


def cache_folder(folder):
    """The subfolder with the notes on a folder's files."""
    return folder / ".hub"


def verify(part, path, size, sha256):
    """Read a file, and stamp it for the name that it has or will get.

    Parameters
    ----------
    part, path : Path
        The file, and its name when it is right.
    size, sha256 : int, str
        Bytes and hexadecimal SHA-256 that the file must have.

    Returns
    -------
    problem : str or None
        Difference, such as "7 bytes instead of 8"; None if the file is right.
    """
    if not part.is_file():
        return "no content, since it is not a file"
    # Taken before the file is read: it may change meanwhile.
    info = part.stat()
    if info.st_size != size:
        return f"{info.st_size:,} bytes instead of {size:,}"
    with part.open("rb") as content:
        if (found := sha_fileobj(content).hex()) != sha256:
            return f"SHA-256 {found} instead of {sha256}"
        # The stamp must not outlive the content in a power failure.
        os.fsync(content.fileno())
    _write(_cache_path(path), f"{found} {size} {info.st_mtime_ns}")


def cached_hash(path):
    """The SHA-256 found in a file that hasn't changed since, or None."""
    try:
        info = path.stat()
        sha256, *version = _cache_path(path).read_text().split()
    except (OSError, ValueError):
        return None
    is_same = version == [str(info.st_size), str(info.st_mtime_ns)]
    return sha256 if is_same else None


def read_record(path):
    """The stored record, or None. A damaged one is not trusted."""
    try:
        record = json.loads(path.read_text())
        hashes = [record["commit"]]
        for file in record["files"].values():
            hashes.append(file["sha256"])
            operator.index(file["size"])
        if all(re.fullmatch("[0-9a-f]{40,64}", value) for value in hashes):
            return record
    except OSError:
        return None
    except (AttributeError, LookupError, TypeError, ValueError):
        pass
    print(f"{path} is damaged: the Hub is asked again.")
    return None


def write_record(path, record):
    """Store a record, if the folder can be written; return it."""
    _write(path, json.dumps(record, indent=1))
    return record


def _cache_path(path):
    return cache_folder(path.parent) / f"{path.name}.sha256"


def _write(path, text):
    """Write a note whole or not at all. In somebody else's folder, or on a
    full disk, the work that it saves is done again."""
    with contextlib.suppress(OSError):
        draft = path.with_name(f".{secrets.token_hex(4)}")
        draft.write_text(text)
        os.replace(draft, path)
