"""Cached checksums of verified files, in the subfolder ``.hub``.

A *record* describes a repository: its "commit", and "files", a dict of name to
"size" (bytes) and "sha256" (hexadecimal). A *cached checksum* is the SHA-256
of one file, valid while its size and modification time stay the same.
"""
import contextlib
import json
import operator
import os
import re
import secrets

from huggingface_hub.utils.sha import sha_fileobj


def cache_folder(folder):
    """Return the subfolder for the checksums of a folder's files."""
    return folder / ".hub"


def verify(part, path, size, sha256):
    """Check a file's content, and cache its checksum under its final name.

    Parameters
    ----------
    part, path : Path
        The file, and the name that it has or will get.
    size, sha256 : int, str
        Expected bytes and hexadecimal SHA-256.

    Returns
    -------
    problem : str or None
        Difference, such as "7 bytes instead of 8"; None if the file is right.
    """
    if not part.is_file():
        return "no content, since it is not a file"
    # The file may change while it is read: take its time before.
    info = part.stat()
    if info.st_size != size:
        return f"{info.st_size:,} bytes instead of {size:,}"
    with part.open("rb") as content:
        if (found := sha_fileobj(content).hex()) != sha256:
            return f"SHA-256 {found} instead of {sha256}"
        # After a power failure, a checksum must not exist without its file.
        os.fsync(content.fileno())
    _write(_cache_path(path), f"{found} {size} {info.st_mtime_ns}")


def cached_hash(path):
    """Return the cached SHA-256 of an unchanged file, or None."""
    try:
        info = path.stat()
        sha256, *version = _cache_path(path).read_text().split()
    except (OSError, ValueError):
        return None
    is_same = version == [str(info.st_size), str(info.st_mtime_ns)]
    return sha256 if is_same else None


def read_record(path):
    """Return the stored record, or None if it is missing or damaged."""
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
    """Store a record if the folder is writable, and return it."""
    _write(path, json.dumps(record, indent=1))
    return record


def _cache_path(path):
    return cache_folder(path.parent) / f"{path.name}.sha256"


def _write(path, text):
    """Write a file atomically. In a read-only folder or on a full disk, do
    without: the cache only saves work."""
    with contextlib.suppress(OSError):
        draft = path.with_name(f".{secrets.token_hex(4)}")
        draft.write_text(text)
        os.replace(draft, path)
