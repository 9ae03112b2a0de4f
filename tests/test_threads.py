"""Threads sleep while they wait, unless the user wants them to spin."""
import os
import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPT = """
{before}
from benchmark_utils.hardware.threads import choose_threads
import torch
for num_elements in {sizes}:
    print(choose_threads(num_elements)[1], torch.get_num_threads())
"""


def run(before="", sizes=(2**18,), **variables):
    """What choose_threads says, and what torch's OpenMP library says."""
    environment = {
        name: value for name, value in os.environ.items()
        if not name.startswith("OMP_")
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before, sizes=sizes)],
        env=environment | variables | {
            "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose",
        },
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    return process.stdout.strip(), process.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' OpenMP")
@pytest.mark.parametrize("before, variables, said, sleeps", [
    ("", {"OMP_NUM_THREADS": "2"},
     "2 threads (OMP_NUM_THREADS=2; they wait asleep) 2", True),
    ("", {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
     "2 threads (OMP_NUM_THREADS=2; they wait spinning) 2", False),
    # Too late to change anything, and not said otherwise.
    ("import torch", {"OMP_NUM_THREADS": "2"},
     "2 threads (OMP_NUM_THREADS=2; they wait spinning) 2", False),
])
def test_threads_wait_asleep_unless_asked_to_spin(
        before, variables, said, sleeps):
    output, openmp = run(before, **variables)
    assert output == said
    # How often a thread looks before it falls asleep.
    assert ("GOMP_SPINCOUNT = '0'" in openmp) == sleeps


@pytest.mark.slow
def test_a_small_model_has_one_thread_and_the_next_one_all():
    """Two cores need not be there: torch is told to have two threads."""
    output, _ = run("import torch; torch.set_num_threads(2)",
                    [2**18, 2**17, 2**18])
    assert output.splitlines() == [
        "2 threads (one per core; they wait spinning) 2",
        "1 thread (the model is small) 1",
        "2 threads (one per core; they wait spinning) 2",
    ]


@pytest.mark.slow
def test_the_users_number_is_that_of_a_small_model_too():
    output, _ = run(sizes=[2**10], OMP_NUM_THREADS="2")
    assert output == "2 threads (OMP_NUM_THREADS=2; they wait asleep) 2"


@pytest.mark.slow
def test_the_benchmark_sets_it_before_torch_is_loaded():
    """As benchopt's command line does it, which loads the objective first."""
    _, openmp = run(
        "from benchopt.benchmark import Benchmark; Benchmark('.')"
    )
    assert "GOMP_SPINCOUNT = '0'" in openmp
