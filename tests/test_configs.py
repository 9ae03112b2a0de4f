"""The shipped run configurations are complete, and run."""
import re

import pytest
import yaml
from benchopt.cli.main import run as benchopt_run

from conftest import ROOT, read_plain
from docs import shortened

CONFIGS = sorted((ROOT / "configs").rglob("*.yml"))
RUNS = [path for path in CONFIGS if path.name != "slurm.yml"]
PROBLEMS = sorted((ROOT / "configs" / "problems").glob("*.yml"))


@pytest.fixture
def run_config(tmp_path):
    """``run_config(text, *arguments)`` runs a configuration to its results."""
    def run_config(text, *arguments):
        path = tmp_path / "config.yml"
        path.write_text(text)
        benchopt_run([
            str(ROOT), "--config", str(path), "--no-plot", "--no-cache",
            "--output", str(tmp_path / "results.parquet"), *arguments,
        ], standalone_mode=False)
        return read_plain(tmp_path / "results.parquet")

    return run_config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_no_limit_of_benchopt_cuts_a_run_short(path):
    config = yaml.safe_load(path.read_text())
    assert config["no-timeout"] is True
    assert config["max-runs"] >= 100_000


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_component_and_parameter_exists(path, bench):
    config = yaml.safe_load(path.read_text())
    for key, check in [
        ("solver", bench.check_solver_patterns),
        ("dataset", bench.check_dataset_patterns),
        ("objective", bench.check_objective_filters),
    ]:
        assert check(config[key])


@pytest.mark.slow
def test_smoke_reaches_its_target_on_each_model(run_config):
    text = (ROOT / "configs" / "smoke_models.yml").read_text()
    rows = run_config(text)
    assert set(rows.objective_name.str.extract(r"\[(\w+),")[0]) == {
        "gpt2", "rotary", "modern"
    }
    last = rows.groupby("objective_name").last()
    assert (last.step == 60).all() and last.target_reached.all()
    smoke = yaml.safe_load((ROOT / "configs" / "smoke.yml").read_text())
    assert smoke["dataset"] == yaml.safe_load(text)["dataset"]


def test_there_is_a_problem_for_each_small_model():
    assert {path.stem for path in PROBLEMS} == {
        f"{row}-{size}" for row in ("gpt2", "rotary", "modern")
        for size in ("small", "tiny")
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", PROBLEMS, ids=lambda path: path.stem)
def test_a_problem_trains_its_three_solvers(path, run_config):
    pytest.importorskip("pytorch_optimizer")
    rows = run_config(shortened(path.read_text()))
    assert rows.objective_name.str.startswith(f"nanoGPT[{path.stem},").all()
    last = rows.groupby("solver_name").last()
    assert last.index.str.extract(r"(\w+)\[")[0].tolist() == [
        "AdamW", "Muon", "SOAP"
    ]
    # After the second step, all matrices of `modern` have moved too.
    assert (last.step == 2).all() and (last.weights_moved > 0).all()
    assert (last.target < last.value).all()


@pytest.mark.slow
def test_adamw_is_at_the_target_after_two_thirds_of_the_horizon(run_config):
    text = (ROOT / "configs" / "problems" / "gpt2-tiny.yml").read_text()
    adamw = re.search(r"- (AdamW\[.*\])", text)[1]
    rows = run_config(text, "-s", adamw, "-r", "1")
    assert rows.target_reached.iloc[-1]
    assert 0.5 < rows.step.iloc[-1] / rows.num_steps.iloc[-1] < 0.85
