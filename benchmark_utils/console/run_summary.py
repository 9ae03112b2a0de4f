"""Exit summary: problem runs and the report command.

Problems of runs are repeated at the end of a command, below everything else.
"""
import atexit
import contextlib
import functools
import glob
import multiprocessing
import os
import secrets
import shlex
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmark_utils.analysis.columns import PROBLEM, rename_columns
from benchmark_utils.analysis.outcome import diagnostics

# The environment variable with the path of the file in which all processes of
# a command collect their problems.
SUMMARY_FILE = "BENCHMARK_NANOGPT_NOTES"

# The path of this command's results, without the suffix; None if there are
# none yet.
_results = None


@functools.cache
def open_summary():
    """Print the summary when this command ends.

    joblib's worker processes leave that to the main process.
    """
    if multiprocessing.current_process().name == "MainProcess":
        name = f"benchmark_nanogpt_{secrets.token_hex(8)}.txt"
        os.environ[SUMMARY_FILE] = str(Path(tempfile.gettempdir(), name))
        # The function registered last is called first.
        atexit.register(print_problems)
        atexit.register(print_report_command, time.time())


def set_results_path(context):
    """Take the path of the command's results from benchopt's context of a
    run, if there is one. A cached run has a context, too."""
    global _results
    _results = getattr(context, "run_output_base", None) or _results


def add_problem(run, sentence):
    """Add a sentence about a run to the summary.

    Parameters
    ----------
    run : object
        Its str is the run's name.
    sentence : str
    """
    text = "\n  ".join(["", *str(sentence).splitlines()])
    with contextlib.suppress(KeyError, OSError):
        with open(
            os.environ[SUMMARY_FILE], "a", encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            # One write, so that lines of several processes don't mix.
            file.write(f"{run}:{text}\0")


def print_report_command(since):
    """Print the command that reports this command's results, if they were
    written after ``since``, in seconds since 1970. Add the problems of their
    runs, including those from benchopt's cache, to the summary."""
    if _results is None:
        return
    # benchopt adds a number if the name is taken.
    names = f"{glob.escape(_results.name)}*.parquet"
    newest = max(
        _results.parent.glob(names), key=os.path.getmtime, default=None
    )
    if newest and newest.stat().st_mtime >= since:
        # Another benchmark's file lacks these columns.
        with contextlib.suppress(OSError, ValueError, KeyError):
            add_diagnostics(newest)
        here = Path.cwd()
        if here in newest.parents:
            newest = newest.relative_to(here)
        print(
            "\nThe verdict: python -m benchmark_utils.report "
            f"{shlex.quote(str(newest))}", flush=True,
        )


def add_diagnostics(path):
    """Add the diagnostics of all runs in a parquet file to the summary."""
    frame = rename_columns(pd.read_parquet(path)).sort_values("step")
    runs = frame.groupby(PROBLEM + ["solver", "repetition"], sort=False)
    for (*_, name, _), curve in runs:
        for sentence in diagnostics(curve.to_dict("records")):
            add_problem(name, sentence)


def print_problems():
    """Print each problem once, and delete the file."""
    path = Path(os.environ[SUMMARY_FILE])
    with contextlib.suppress(FileNotFoundError):
        problems = path.read_text(encoding="utf-8").split("\0")[:-1]
        path.unlink()
        print("\nRuns that need attention:")
        print("\n".join(dict.fromkeys(problems)), flush=True)
