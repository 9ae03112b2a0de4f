"""Extra inputs to benchopt's cache key.

benchopt's own key has the files of objective, dataset and solver and their
parameters, but not the shared code, the versions of packages, or the data.
"""
import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class Keyed:
    """Mixin of a benchopt component that adds ``cache_key`` to the key.

    A component's state, as pickle sees it, is the only way into benchopt's
    key. It is never restored: a component is rebuilt from its file and its
    parameters.
    """

    def cache_key(self) -> Any:
        """Return what results depend on in addition: numbers and strings, in
        dicts, lists and tuples."""
        raise NotImplementedError

    def _get_state(self):
        return self.cache_key()

    def __setstate__(self, state):
        pass


class KeyedFiles(Keyed):
    """Mixin of a component that reads files which parameters name, and whose
    results change with these files."""

    # Names of parameters, whose value may be None.
    file_parameters: Sequence[str] = ()
    _parameters: dict[str, Any]

    @classmethod
    def check_there(cls, values):
        for name in cls.file_parameters:
            path = values[name]
            if path is not None and not Path(path).is_file():
                raise ValueError(
                    f"{name}: there is no file {path}. (On its command line, "
                    'benchopt takes "=" in a path for ":", and splits one '
                    "without quotes at commas: copy such a file to another "
                    "name.)"
                )

    def cache_key(self):
        paths = (self._parameters[name] for name in self.file_parameters)
        return [(path, _stamp(path)) for path in paths if path is not None]


def _stamp(path):
    """Return a file's size in bytes and time of last change, or None."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@functools.cache
def code_hash():
    """Return the SHA-256 of the shared code at the first call."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions(requirements):
    """Return (name, version) of torch, with its build, and of requirements,
    such as "pip::package~=1.0". The version is None if not installed."""
    names = (
        re.split("[<>=~!@;[ ]", requirement.split("::")[-1])[0]
        for requirement in requirements
    )
    # The installed distribution's version lacks the build, such as "+cu130".
    return [("torch", torch.__version__)] + [
        (name, installed_version(name)) for name in names
    ]


@functools.cache
def installed_version(package):
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
