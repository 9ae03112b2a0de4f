"""benchopt's own checks of a benchmark, and its cache."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchopt.results import read_results

from conftest import ROOT
from docs import Clone


@pytest.mark.slow
def test_benchopt_test_passes():
    # benchopt runs the first pytest of the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        [sys.executable, "-m", "benchopt", "test", ".", "--skip-install"],
        cwd=ROOT, env=os.environ | {"PATH": path}, text=True,
        stdout=subprocess.PIPE, timeout=600,
    )
    assert process.returncode == 0, process.stdout
    assert " passed" in process.stdout


@pytest.mark.slow
def test_editing_shared_code_never_serves_stale_results(tmp_path):
    clone = Clone(tmp_path / "clone")

    def first_loss(name):
        output = clone.run(
            "benchopt run . --config configs/smoke.yml --no-plot -s "
            f"AdamW[num_steps=1,warmup_steps=0] --output {name}"
        )
        results = read_results(clone.folder / "outputs" / f"{name}.parquet")
        return results.objective_value.iloc[-1], "(cached)" in output

    model = clone.folder / "benchmark_utils/models/initialisation.py"
    original = model.read_text()
    assert "std = 0.02" in original
    reference, cached = first_loss("reference")
    assert not cached
    model.write_text(original.replace("std = 0.02", "std = 0.03"))
    edited, cached = first_loss("edited")
    assert not cached and edited != reference
    model.write_text(original)
    assert first_loss("restored") == (reference, True)
