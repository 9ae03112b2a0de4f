"""benchopt's own checks of a benchmark, and its cache."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchopt.results import read_results

ROOT = Path(__file__).parents[1]


def benchopt(folder, *arguments):
    """Run the command line in a process of its own; return what it prints."""
    process = subprocess.run(
        [sys.executable, "-m", "benchopt", *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture
def clone(tmp_path):
    """A copy of the benchmark's files, without what running it left."""
    return Path(shutil.copytree(ROOT, tmp_path / "clone", ignore=(
        shutil.ignore_patterns(
            ".*", "__pycache__", "__cache__", "outputs", "data", "tests"
        )
    )))


def test_benchopt_test_passes():
    output = benchopt(ROOT, "test", ".", "--skip-install", "-q")
    assert " passed" in output and "failed" not in output


def test_editing_shared_code_never_serves_stale_results(clone):
    def first_loss(name):
        output = benchopt(
            clone, "run", ".", "--config", "configs/smoke.yml", "--no-plot",
            "-s", "Adam[num_steps=1,warmup_steps=0]", "--output", name,
        )
        results = read_results(clone / "outputs" / f"{name}.parquet")
        return results.objective_value.iloc[-1], "(cached)" in output

    model = clone / "benchmark_utils" / "gpt2.py"
    original = model.read_text()
    assert 'approximate="tanh"' in original
    reference, cached = first_loss("reference")
    assert not cached
    model.write_text(original.replace('approximate="tanh"', ""))
    edited, cached = first_loss("edited")
    assert not cached and edited != reference
    model.write_text(original)
    assert first_loss("restored") == (reference, True)
