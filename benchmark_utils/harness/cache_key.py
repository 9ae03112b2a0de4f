"""Extra inputs to benchopt's cache key.

benchopt's own key has the files of objective, dataset and solver and their
parameters, but not the shared code, the versions of packages, or the data.
"""
import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHARED = Path(__file__).resolve().parents[1]
# Folders of code that a version or ``code_hash`` stands for.
INSTALLED = [SHARED] + [
    Path(sysconfig.get_path(kind)).resolve()
    for kind in ("stdlib", "platstdlib", "purelib", "platlib")
]


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
    digest = hashlib.sha256()
    for path in sorted(SHARED.rglob("*.py")):
        name = path.relative_to(SHARED).as_posix()
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


def imported_code(path):
    """Hash the code that a solver file imports and no version stands for.

    These are modules outside of the benchmark's shared code, Python's library
    and site-packages: files beside the solver's, and packages installed in
    editable mode. Modules that these import count, too.

    Parameters
    ----------
    path : Path
        A Python file.

    Returns
    -------
    hashes : dict of str to str
        SHA-256 by the module's name.
    """
    hashes, files = {}, [(Path(path), "")]
    while files:
        file, package = files.pop()
        for name in imported_names(file, package):
            source = find_source(name)
            if source is None or name in hashes:
                continue
            hashes[name] = hashlib.sha256(source.read_bytes()).hexdigest()
            is_package = source.name == "__init__.py"
            files.append((source, name if is_package else (
                name.rpartition(".")[0]
            )))
    return dict(sorted(hashes.items()))


def imported_names(file, package):
    """Yield the names of modules, and of what might be one, that a file
    imports, and of the packages that they are in."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A dot is the file's own package, each further one its parent.
            parents = package.split(".")[:-(node.level - 1) or None]
            above = ".".join(parents) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            names = [module] + [
                f"{module}.{alias.name}" for alias in node.names
            ]
        else:
            continue
        for name in names:
            yield from itertools.accumulate(
                name.split("."), lambda first, rest: f"{first}.{rest}"
            )


def find_source(name):
    """The file of a module that is neither installed nor shared code; None if
    it is, or if there is no such module."""
    top, _, rest = name.partition(".")
    if rest and find_source(top) is None:
        # Looking for a submodule imports its package.
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    source = Path(spec and spec.origin or "").resolve()
    if source.suffix != ".py" or any(
        folder in source.parents for folder in INSTALLED
    ):
        return None
    return source
