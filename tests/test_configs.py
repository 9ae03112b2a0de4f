"""The shipped run configurations are complete."""
from pathlib import Path

import pytest
import yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yml"))
RUNS = [path for path in CONFIGS if path.name != "slurm.yml"]


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
