"""Some solvers of a configuration are run with its settings."""
import subprocess
import sys

import pytest
import yaml

from benchmark_utils.select import select
from conftest import ROOT

CONFIG = {
    "n-repetitions": 3,
    "solver": [
        "AdamW[num_steps=400,warmup_steps=40,learning_rate=0.01]",
        "Muon[num_steps=400,warmup_steps=40,learning_rate=0.02]",
        "Muon[num_steps=400,warmup_steps=40,learning_rate=0.03]",
    ],
}


def test_settings_are_those_of_the_configuration():
    chosen = select(CONFIG, ["muon"])
    assert chosen == CONFIG | {"solver": CONFIG["solver"][1:]}


def test_a_file_gets_what_all_have_in_common(tmp_path):
    file = tmp_path / "mine.py"
    file.touch()
    solvers = select(CONFIG, [str(file), "SGD[num_steps=7]"])["solver"]
    assert solvers == [
        f"{file}[num_steps=400,warmup_steps=40]", "SGD[num_steps=7]"
    ]


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="Moun is no solver .* AdamW, Muon"):
        select(CONFIG, ["Moun"])


@pytest.mark.parametrize("config", ["quickstart", "smoke"])
def test_what_it_prints_runs(config, tmp_path, bench):
    path = f"configs/{config}.yml"
    printed = subprocess.run(
        [sys.executable, "-m", "benchmark_utils.select", path, "AdamW",
         "solvers/lion.py"], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE,
    ).stdout
    chosen = yaml.safe_load(printed)
    whole = yaml.safe_load((ROOT / path).read_text())
    assert chosen["dataset"] == whole["dataset"]
    assert chosen["solver"][0] == whole["solver"][0]
    adamw, lion = bench.check_solver_patterns(chosen["solver"])
    assert lion[1]["num_steps"] == adamw[1]["num_steps"]


def test_a_missing_configuration_is_one_sentence():
    result = subprocess.run(
        [sys.executable, "-m", "benchmark_utils.select", "no.yml", "AdamW"],
        cwd=ROOT, text=True, capture_output=True,
    )
    assert result.returncode == 2
    assert "No such file" in result.stderr.splitlines()[-1]
