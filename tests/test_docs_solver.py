"""Following docs/add_a_solver.rst to the letter gives a proven solver."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
from benchopt.results import read_results

from conftest import ROOT

PAGE = (ROOT / "docs" / "add_a_solver.rst").read_text()


def code_blocks(language):
    blocks = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", PAGE, re.M
    )
    return [textwrap.dedent(block).strip() for block in blocks]


@pytest.fixture
def clone(tmp_path):
    return shutil.copytree(ROOT, tmp_path / "clone", ignore=(
        shutil.ignore_patterns(
            ".*", "__pycache__", "__cache__", "outputs", "data"
        )
    ))


def follow(clone, command):
    """Run a command of the page in the clone; return what it printed."""
    program, *arguments = shlex.split(command)
    assert program in ("benchopt", "pytest")
    process = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=clone, text=True,
        env=os.environ | {"CI": "true"}, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def test_from_the_paper_to_a_proven_curve(clone):
    any_optimizer, suite, curve = code_blocks("bash")
    follow(clone, any_optimizer)
    for path in (clone / "outputs").iterdir():
        path.unlink()
    (clone / "solvers" / "cautious_lion.py").write_text(
        "\n\n\n".join(code_blocks("python")) + "\n"
    )
    output = follow(clone, suite)
    assert "kept  first steps equal the paper" in output
    assert "kept  every hyper parameter matters" in output
    assert "BROKEN" not in output
    output = follow(clone, curve)
    assert "Traceback" not in output
    assert list((clone / "outputs").glob("*.html"))
    path, = (clone / "outputs").glob("*.parquet")
    last = read_results(path).groupby("solver_name").last()
    assert len(last) == 2
    assert (last.objective_step == 60).all()
    assert (last.objective_value < 5).all()


def test_the_suite_notices_mistakes(clone):
    """The file of the page with one sign wrong, and one option unused."""
    source = "\n\n\n".join(code_blocks("python")) + "\n"
    for right, wrong in [
        ("step * p.grad > 0", "step * p.grad < 0"),
        ('group["weight_decay"])\n', '0.0)\n'),
    ]:
        assert right in source
        source = source.replace(right, wrong)
    path = clone / "mine.py"
    path.write_text(source)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", f"--solver={path}", "-k",
         "paper or decay or matters"], cwd=clone, text=True,
        stdout=subprocess.PIPE,
    )
    assert process.returncode == 1
    for promise in (
        "first steps equal the paper", "weight decay is the stated one",
        "every hyper parameter matters",
    ):
        assert f"BROKEN  {promise}" in process.stdout
