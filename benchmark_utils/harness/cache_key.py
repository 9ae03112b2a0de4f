"""The rest of the key of a cached run: what its results depend on beside its
components' files.

benchopt's key of a cached run has the files of objective, dataset and solver
and their parameters, but neither the code they share, nor the versions of the
packages they use, nor the data.
"""
import functools
import hashlib
import importlib.metadata
import re
from pathlib import Path

import torch


class Keyed:
    """Mixin of a benchopt component whose results depend on more than its
    file and its parameters: on what ``cache_key`` returns.

    The state of a component, as pickle sees it, is the only way into
    benchopt's key. It is never restored: a component is rebuilt from its file
    and its parameters.
    """

    def cache_key(self):
        """The rest that results depend on: numbers and strings, in dicts,
        lists and tuples."""
        raise NotImplementedError

    def _get_state(self):
        return self.cache_key()

    def __setstate__(self, state):
        pass


class KeyedFiles(Keyed):
    """Mixin of a component that reads files which parameters name: a file
    that is replaced by another is another problem."""

    # Names of parameters; the value None is no file.
    file_parameters = ()

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
    """Size in bytes and time of the last change of a file; None without one.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@functools.cache
def code_hash():
    """SHA-256 of the shared code, as it was when first asked for."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions(requirements):
    """Versions of torch, build included, and of what a solver requires.

    Parameters
    ----------
    requirements : list of str
        As benchopt takes them: "pip::package~=1.0".

    Returns
    -------
    versions : list of (name, version)
        The version of a package that is not installed is None.
    """
    names = (
        re.split("[<>=~!@;[ ]", requirement.split("::")[-1])[0]
        for requirement in requirements
    )
    # The distribution's version of torch lacks the build: "+cu130".
    return [("torch", torch.__version__)] + [
        (name, installed_version(name)) for name in names
    ]


@functools.cache
def installed_version(package):
    """The version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
