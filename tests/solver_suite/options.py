"""Options of pytest for the suite that every solver passes.

``pytest --solver path/to/mine.py`` puts a file from anywhere through it, and
prints which promises the solver keeps. ``--write-golden-losses`` records the
losses of the solvers anew.
"""
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
        "slow: takes more than ten seconds (deselect: -m 'not slow')",
    )


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
    if not config.getoption("solver"):
        return
    terminalreporter.section(f"promises of {config.getoption('solver')}")
    verdicts = [
        ("passed", "kept"), ("failed", "BROKEN"), ("error", "BROKEN"),
        ("skipped", "not tested"),
    ]
    for outcome, verdict in verdicts:
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.rpartition("::")[2]
            promise = name.removeprefix("test_").replace("_", " ")
            reason = ""
            if outcome == "skipped":
                reason = ": " + report.longrepr[2].removeprefix("Skipped: ")
            terminalreporter.write_line(f"{verdict:>10}  {promise}{reason}")
