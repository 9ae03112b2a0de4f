"""The architecture: which module of benchmark_utils may import which.

docs/architecture.rst describes these rooms.
"""
import ast
import graphlib
import itertools
import re
import warnings

import pytest

from conftest import ROOT

# Each room may import those before it in this list, and itself.
ROOMS = [
    "analysis", "console", "report", "hardware", "data", "models",
    "optimizers", "distributed", "training", "harness", "solver",
]
# Results can be read where torch is missing or slow to import.
WITHOUT_TORCH = {"analysis", "console", "report"}
# The rooms and modules that know benchopt.
WITH_BENCHOPT = {"harness", "solver", "report", "distributed.workers"}


def imported_by(path):
    """Full names of everything that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


FOLDER = ROOT / "benchmark_utils"
# Of each module, by its name without the package's: what it imports.
IMPORTS = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts):
    list(imported_by(path)) for path in sorted(FOLDER.rglob("*.py"))
    if path.name != "__init__.py"
}


def modules_of(name, modules):
    """The modules that the import of a name loads."""
    package, _, rest = name.partition(".")
    if package != "benchmark_utils":
        return []
    return [m for m in (rest, rest.rpartition(".")[0]) if m in modules] or [
        m for m in modules if m.startswith(f"{rest}.")
    ]


def faults(imports):
    """Yield a sentence about each import that breaks the rules."""
    graph = {}
    for module, names in imports.items():
        room = module.split(".")[0]
        if room not in ROOMS:
            yield f"{module} lies in no room"
            continue
        packages = {name.split(".")[0] for name in names}
        if "torch" in packages and room in WITHOUT_TORCH:
            yield f"{module} imports torch"
        if "benchopt" in packages and not {room, module} & WITH_BENCHOPT:
            yield f"{module} imports benchopt"
        graph[module] = {m for n in names for m in modules_of(n, imports)}
        for other in graph[module]:
            if ROOMS.index(other.split(".")[0]) > ROOMS.index(room):
                yield f"{module} imports {other}, of a later room"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"a circle: {' -> '.join(error.args[1])}"


def planted(module, *names):
    """The imports of all modules, with some more in one of them."""
    return IMPORTS | {module: IMPORTS.get(module, []) + list(names)}


def test_each_room_imports_only_earlier_ones():
    assert not list(faults(IMPORTS))


def test_the_page_lists_the_rooms_in_order():
    page = (ROOT / "docs" / "architecture.rst").read_text()
    table = page.split("What it holds\n")[1]
    assert re.findall(r"^``(\w+)``", table, re.M) == ROOMS


def test_a_circle_in_any_two_modules_is_found():
    for one, two in itertools.combinations(IMPORTS, 2):
        # Of these two alone: with all others, it takes seconds.
        assert list(faults({
            one: [*IMPORTS[one], f"benchmark_utils.{two}"],
            two: [*IMPORTS[two], f"benchmark_utils.{one}"],
        })), (one, two)


@pytest.mark.parametrize("module, name, sentence", [
    ("console.progress", "benchmark_utils.solver.TrainingSolver",
     "console.progress imports solver, of a later room"),
    ("console.progress", "benchmark_utils.report",
     "console.progress imports report.page, of a later room"),
    ("analysis.table", "torch.nn", "analysis.table imports torch"),
    ("training.trainer", "benchopt.BaseSolver",
     "training.trainer imports benchopt"),
    ("loose", "os", "loose lies in no room"),
])
def test_a_fault_is_named(module, name, sentence):
    assert sentence in list(faults(planted(module, name)))


def test_imports_inside_of_functions_count(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def never():\n    from benchmark_utils import report\n")
    assert list(imported_by(path)) == ["benchmark_utils.report"]


def test_init_files_are_empty():
    assert not [
        path for path in FOLDER.rglob("__init__.py")
        if path.read_text()
    ]


def test_long_files_are_mentioned():
    """A file is split where its subject changes; its length is a hint."""
    for path in ROOT.rglob("*.py"):
        if len(path.read_text().splitlines()) > 400 and not {
            "tests", ".venv", "build", "site-packages",
        } & set(path.parts):
            warnings.warn(
                f"{path.relative_to(ROOT)} has over 400 lines", stacklevel=1
            )
