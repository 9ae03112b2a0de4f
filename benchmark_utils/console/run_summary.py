"""The last words of a command: which of its runs to mind, and what reports its
results.

What a run that failed, or that ended otherwise than its user may think, has to
say is said once more when the command ends, below everything else.
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

# The environment variable that tells the worker processes of a command in
# which file to leave what is said when it ends.
SUMMARY_FILE = "BENCHMARK_NANOGPT_NOTES"

# The path of this command's results, without the suffix; None if there are
# none yet.
_results = None


@functools.cache
def open_summary():
    """Have what is noted printed when this command ends.

    A worker process of joblib's leaves that to the process of the command.
    """
    if multiprocessing.current_process().name == "MainProcess":
        name = f"benchmark_nanogpt_{secrets.token_hex(8)}.txt"
        os.environ[SUMMARY_FILE] = str(Path(tempfile.gettempdir(), name))
        # What is registered last is called first.
        atexit.register(print_problems)
        atexit.register(print_report_command, time.time())


def set_results_path(context):
    """Take from benchopt's context of a run, if there is one, where the
    command's results will be. A cached run has a context, too."""
    global _results
    _results = getattr(context, "run_output_base", None) or _results


def add_problem(run, sentence):
    """Say something about a run when the command ends.

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
            # One write, so that those of several processes don't mix.
            file.write(f"{run}:{text}\0")


def print_report_command(since):
    """Print the command that reports this command's results, if they were
    written after ``since``, in seconds since 1970; and note which of their
    runs went wrong, those from benchopt's cache included."""
    if _results is None:
        return
    # benchopt adds a number to a name that is taken.
    names = f"{glob.escape(_results.name)}*.parquet"
    newest = max(
        _results.parent.glob(names), key=os.path.getmtime, default=None
    )
    if newest and newest.stat().st_mtime >= since:
        # Not if it isn't this benchmark's.
        with contextlib.suppress(OSError, ValueError, KeyError):
            add_failures(newest)
        here = Path.cwd()
        if here in newest.parents:
            newest = newest.relative_to(here)
        print(
            "\nThe verdict: python -m benchmark_utils.report "
            f"{shlex.quote(str(newest))}", flush=True,
        )


def add_failures(path):
    """Note what the runs in a parquet file have to say."""
    frame = rename_columns(pd.read_parquet(path)).sort_values("step")
    runs = frame.groupby(PROBLEM + ["solver", "repetition"], sort=False)
    for (*_, name, _), curve in runs:
        for sentence in diagnostics(curve.to_dict("records")):
            add_problem(name, sentence)


def print_problems():
    """Print each note once, and delete them."""
    path = Path(os.environ[SUMMARY_FILE])
    with contextlib.suppress(FileNotFoundError):
        notes = path.read_text(encoding="utf-8").split("\0")[:-1]
        path.unlink()
        print("\nMind these runs:")
        print("\n".join(dict.fromkeys(notes)), flush=True)
