"""What the results of a run depend on beside its components' files.

benchopt's key of a cached run has the files of objective, dataset and solver,
but neither the code they share nor the versions of the packages they use.
"""
import functools
import hashlib
import importlib.metadata
from pathlib import Path


@functools.cache
def code_hash():
    """SHA-256 of the shared code, as it was when first asked for."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        name = path.relative_to(Path(__file__).parent).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def installed_version(package):
    """The version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
