"""Options of pytest for the suite that every solver passes.

``pytest --solver path/to/mine.py`` puts a file from anywhere through it, and
prints which promises the solver keeps. ``--write-golden-losses`` records the
losses of the solvers anew.
"""
import ast
import io
import textwrap
import tokenize
from pathlib import Path

SUITE = "test_solvers.py"


def pytest_addoption(parser):
    parser.addoption(
        "--solver", metavar="FILE",
        help="run only the suite of solvers, on this file",
    )
    parser.addoption(
        "--write-golden-losses", action="store_true",
        help="record the losses of all solvers in tests/golden_losses.txt",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "slow: takes more than two seconds (deselect: -m 'not slow')",
    )


def pytest_ignore_collect(collection_path, config):
    """With a solver, only the suite is imported."""
    name = collection_path.name
    if config.getoption("solver") and name.startswith("test_"):
        return name != SUITE or None


def pytest_collection_modifyitems(config, items):
    if config.getoption("solver"):
        chosen = [
            item for item in items if item.path.name == SUITE
            and "solver_file" in item.fixturenames
        ]
        config.hook.pytest_deselected(
            items=[item for item in items if item not in chosen]
        )
        items[:] = chosen


def pytest_terminal_summary(terminalreporter, config):
    """One line for each promise, with the reason where it is broken, and the
    length of the file."""
    file = config.getoption("solver")
    if not file:
        return
    terminalreporter.section(f"promises of {file}")
    promises = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.rpartition("::")[2].partition("[")[0]
            promise = name.removeprefix("test_").replace("_", " ")
            promises.setdefault(promise, []).append((outcome, report))
    for promise, reports in promises.items():
        outcomes = [outcome for outcome, _ in reports]
        broken = outcomes.count("failed") + outcomes.count("error")
        if broken:
            verdict, reason = "BROKEN", f": {why(reports)}"
            if len(reports) > 1:
                reason = f": {broken} of {len(reports)} tests{reason}"
        elif "passed" in outcomes:
            verdict, reason = "kept", ""
        else:
            _, report = reports[0]
            verdict = "not tested"
            reason = ": " + report.longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"{verdict:>10}  {promise}{reason}")
    if Path(file).is_file():
        length = lines_of_code(Path(file).read_text())
        terminalreporter.write_line(f"{'length':>10}  {length} lines of code")


def why(reports):
    """The first line of the first failure among a promise's tests."""
    crash = next(
        getattr(report.longrepr, "reprcrash", None)
        for outcome, report in reports if outcome in ("failed", "error")
    )
    first, *_ = crash.message.splitlines() if crash else ["see above"]
    return textwrap.shorten(first, 120, placeholder=" ...")


def lines_of_code(source):
    """Number of lines without comments, docstrings, the `reference` and the
    table of `published` settings."""
    tree = ast.parse(source)
    left_out = {
        line for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        or getattr(node, "name", "") == "reference"
        or isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "published"
        for line in range(node.lineno, node.end_lineno + 1)
    }
    layout = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
        tokenize.DEDENT, tokenize.ENDMARKER,
    }
    lines = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in layout
    }
    return len(lines - left_out)
