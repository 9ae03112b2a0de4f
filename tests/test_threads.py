"""Threads sleep while they wait, unless the user wants them to spin."""
import os
import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPT = """
{before}
from benchmark_utils.threads import choose_threads
import torch
print(*choose_threads(), sep=" threads, ")
"""


def run(before="", **variables):
    """What choose_threads says, and what torch's OpenMP library says."""
    environment = {
        name: value for name, value in os.environ.items()
        if not name.startswith("OMP_")
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env=environment | variables | {
            "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose",
        },
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    return process.stdout.strip(), process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' OpenMP")
@pytest.mark.parametrize("before, variables, said, sleeps", [
    ("", {"OMP_NUM_THREADS": "2"},
     "2 threads, OMP_NUM_THREADS=2; they wait asleep", True),
    ("", {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "active"},
     "1 threads, OMP_NUM_THREADS=1; they wait spinning", False),
    # Too late to change anything, and not said otherwise.
    ("import torch", {"OMP_NUM_THREADS": "1"},
     "1 threads, OMP_NUM_THREADS=1; they wait spinning", False),
])
def test_threads_wait_asleep_unless_asked_to_spin(
        before, variables, said, sleeps):
    output, openmp = run(before, **variables)
    assert output == said
    # How often a thread looks before it falls asleep.
    assert ("GOMP_SPINCOUNT = '0'" in openmp) == sleeps


def test_one_thread_per_core_unless_told_otherwise():
    output, _ = run()
    assert "threads, one per core; they wait asleep" in output


def test_the_benchmark_sets_it_before_torch_is_loaded():
    """As benchopt's command line does it, which loads the objective first."""
    _, openmp = run(
        "from benchopt.benchmark import Benchmark; Benchmark('.')"
    )
    assert "GOMP_SPINCOUNT = '0'" in openmp
