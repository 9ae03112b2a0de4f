"""The benchmark on a fake CUDA device: every solver trains through benchopt,
and each of a dozen planted bugs is found. speed/fake_cuda/device.py documents
what the device records."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("g++"),
        reason="the fake device needs Linux and g++",
    ),
]

# Solvers that wait for the device in steps (docs/performance.rst): Adafactor
# in each, SOAP in the first ones.
WAITS_IN_A_STEP = {"Adafactor", "SOAP"}


def solver_names():
    for path in sorted((ROOT / "solvers").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and (
                ast.unparse(node.targets[0]) == "name"
            ):
                yield node.value.value


def bug_names():
    """Parse the keys of BUGS: importing the file would change torch."""
    for node in ast.parse((ROOT / "tests/cuda_runs.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "BUGS":
            return [key.value for key in node.value.keys]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The report of each run, by its name."""
    process = subprocess.run(
        [
            sys.executable, "tests/cuda_runs.py",
            tmp_path_factory.mktemp("cuda"),
        ],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        },
    )
    assert process.returncode == 0, process.stderr[-5000:]
    return dict(json.loads(line) for line in process.stdout.splitlines())


def assert_sound(report, may_wait=False):
    """Check one run against the promises of docs/devices.rst."""
    assert "error" not in report, report["error"]
    # No copy is from unpinned memory and no number is read back. A tensor on
    # the wrong device would have raised an error.
    waiting = {"step", "gradients", "run"} & set(report["waits"])
    assert waiting <= ({"step"} if may_wait else set()), report["waits"]
    assert report["clock"]["readings"] >= 2
    assert report["clock"]["queued"] == 0
    for where in ("gradients", "evaluation"):
        assert report["product_dtypes"][where] == ["torch.bfloat16"]
    assert (report["device"], report["dtype"]) == ("fake GPU", "bfloat16")
    # Parameters, gradients and activations of the tiny model.
    assert 0.1 < report["peak_memory_mib"] < 10


@pytest.mark.parametrize("name", list(solver_names()))
def test_every_solver_trains_on_cuda(reports, name):
    report = reports[name]
    assert_sound(report, name in WAITS_IN_A_STEP)
    assert report["step"] == 6
    assert ("step" in report["waits"]) == (name in WAITS_IN_A_STEP)


@pytest.mark.parametrize("model", ["gpt2", "rotary", "modern"])
def test_a_model_is_one_graph_for_training_and_one_for_evaluation(
        reports, model):
    report = reports[f"{model} compiled"]
    assert_sound(report)
    assert report["compiled"] == 1
    assert report["graphs"] == ["training", "evaluation"]


@pytest.mark.parametrize("name", bug_names())
def test_a_planted_bug_is_found(reports, name):
    # If the line has changed, change the bug in cuda_runs.py, too.
    assert "not planted" not in reports[name], reports[name]
    with pytest.raises(AssertionError):
        assert_sound(reports[name])
    # The run failed because of the bug, not for another reason.
    error = reports[name].get("error", "")
    assert not error or any(cause in error for cause in (
        "device", "torch._dynamo.exc.Unsupported"
    )), error


def test_the_memory_in_the_docs_is_what_the_command_prints():
    """And more than AdamW's weights, gradients and two moments in float32."""
    process = subprocess.run(
        [
            sys.executable, "-m", "speed.memory", "--json", "--dtype",
            "bfloat16", "--micro-batch", "8",
        ],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    row, = json.loads(process.stdout)
    page = (ROOT / "docs/devices.rst").read_text()
    cells = re.search(r"^8 x 1,024 +(\S+)", page, re.M)
    assert round(row["training_gib"], 2) == float(cells[1])
    evaluation = re.search(r"^evaluation +(\S+)", page, re.M)
    assert round(row["evaluation_gib"], 2) == float(evaluation[1])
    assert row["training_gib"] > 16 * 124_439_808 / 2**30
