"""The benchmark on CUDA, shown without a GPU: every solver trains through
benchopt on a device that does not exist, and each of a dozen planted bugs is
found. See speed/fake_cuda/device.py for what is seen and what is not."""
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
        reason="the device that does not exist needs Linux and g++",
    ),
]

# What waits for the device in steps, which docs/performance.rst says:
# Adafactor in each, SOAP in the first ones.
WAITS_IN_A_STEP = {"Adafactor", "SOAP"}


def solver_names():
    for path in sorted((ROOT / "solvers").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and (
                ast.unparse(node.targets[0]) == "name"
            ):
                yield node.value.value


def bug_names():
    """The keys of BUGS, from a file that this process can't import."""
    for node in ast.parse((ROOT / "tests/cuda_runs.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "BUGS":
            return [key.value for key in node.value.keys]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What was seen of each run, by its name."""
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
    """One run, held to what docs/devices.rst promises of CUDA."""
    assert "error" not in report, report["error"]
    # Nothing is copied from memory that isn't pinned, nothing read back, and
    # every tensor was where the others were, or there would be an error.
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
    # Where the line has changed, the bug in cuda_runs.py must, too.
    assert "not planted" not in reports[name], reports[name]
    with pytest.raises(AssertionError):
        assert_sound(reports[name])
    # Found for what it is, not for a run that broke otherwise.
    error = reports[name].get("error", "")
    assert not error or any(cause in error for cause in (
        "device", "torch._dynamo.exc.Unsupported"
    )), error


def test_the_memory_in_the_docs_is_what_the_command_says():
    """And more than the closed form of what AdamW can't do without: weights,
    gradients and two moments, all in float32."""
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
