"""The page on training in a notebook does what it says."""
import re
import subprocess
import sys

import pytest
from safetensors.torch import save_file

from benchmark_utils.models.named import make_model
from docs import ROOT, Clone, code_blocks

PAGE = "docs/trainer.rst"


def test_the_notebook_trains_saves_and_goes_on(tmp_path):
    """All its Python in one process, from the folder of the benchmark but
    leaving nothing there."""
    code = "\n".join(code_blocks(PAGE, "python"))
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    ).stdout
    losses = [
        float(line.split()[2]) for line in output.splitlines()
        if re.match(r"\d+ ", line)
    ]
    assert len(losses) == 3 and losses[-1] < losses[0] < 4.2
    assert (tmp_path / "run" / "step_000000060" / "SHA256SUMS").exists()
    assert "benchopt" not in code


@pytest.mark.slow
def test_given_weights_are_evaluated_without_training(tmp_path):
    clone = Clone(tmp_path / "clone")
    model = make_model(
        "gpt2", 256, seed=5, n_layer=2, n_head=2, n_embd=32,
        context_length=64,
    )
    save_file(model.state_dict(), clone.folder / "weights.safetensors")
    command, = code_blocks(PAGE, "bash")
    clone.run(command + " --no-display")
    frame = clone.results()
    assert frame.objective_step.tolist() == [0]
    assert 5.4 < frame.objective_value.iloc[0] < 5.7
