"""Who may import whom: rooms by topic, one above the other."""
import ast

import pytest

from conftest import ROOT

UTILS = ROOT / "benchmark_utils"
# What each room of benchmark_utils may import, beside itself. A module that
# lies in no room is a room of its own.
BELOW = {
    "device": set(),
    "machine": {"device"},
    "data": {"device"},
    "models": {"device"},
    "optimizers": set(),
    "results": set(),
    "training": {"data", "models", "optimizers", "device"},
    "last_words": {"results"},
    "errors": {"last_words"},
    "report": {"results"},
    "threads": set(),
    "parameters": {"data", "models", "training"},
    "problem": {"data", "training", "machine"},
}
# On the top floor everything below can be used, and benchopt.
TOP = {
    "solver", "stopping", "cache_key", "resume", "signals", "progress",
    "checked", "followers", "places", "settings", "matrix_solver", "select",
}
# Without torch: results can be read where nothing is trained.
LIGHT = {"results", "report", "errors", "last_words"}
MODULES = sorted(UTILS.rglob("*.py"))


def room(path):
    return path.relative_to(UTILS).parts[0].removesuffix(".py")


def imports(path):
    """Full names of all modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize(
    "path", MODULES, ids=[str(m.relative_to(UTILS)) for m in MODULES]
)
def test_imports_run_down_only(path):
    own = room(path)
    rooms = {
        name.split(".")[1] for name in imports(path)
        if name.startswith("benchmark_utils.")
    } - {own}
    packages = {name.split(".")[0] for name in imports(path)}
    if own == "__init__":
        assert path.read_text() == ""
    elif own in TOP:
        assert rooms <= BELOW.keys() | TOP
    else:
        assert rooms <= BELOW[own]
        assert "benchopt" not in packages or own == "report"
        assert "torch" not in packages or own not in LIGHT


def test_there_is_no_circle():
    for name, below in BELOW.items():
        for other in below:
            assert name not in BELOW[other], f"{name} and {other}"


@pytest.mark.parametrize("folder", [
    "benchmark_utils", "solvers", "datasets", "plots", "speed", "tuning", "."
])
def test_a_file_is_read_in_one_sitting(folder):
    files = (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for file in files
    }
    assert lengths and not {f: n for f, n in lengths.items() if n > 300}


def test_init_files_are_empty():
    assert not [p for p in UTILS.rglob("__init__.py") if p.read_text()]
