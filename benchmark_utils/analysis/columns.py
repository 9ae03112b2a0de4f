"""Column names: benchopt's, and this benchmark's own.

No other module knows benchopt's names of what is measured. From here on a
validation loss is ``val_loss``; benchopt requires ``value`` in objective.py.
"""
from collections.abc import Mapping
from typing import Any

import pandas as pd

# benchopt puts this before the names of what objective.py measures.
PREFIX = "objective_"
# benchopt's name -> ours. All other columns only lose the prefix.
NAMES = {
    "dataset_name": "dataset", "objective_name": "objective",
    "solver_name": "solver", "idx_rep": "repetition",
    "objective_value": "val_loss", "time": "seconds",
}
# Our name -> that in a run's CSV file.
LOGGED = {"val_loss": "value", "seconds": "time"}

# Parameters of solvers, datasets and the objective keep benchopt's names,
# which begin with these.
SOLVER, DATASET, OBJECTIVE = "p_solver_", "p_dataset_", "p_obj_"

PROBLEM = ["dataset", "objective"]
# Repetitions of one number have the same initialisation and the same data
# where they come from the same base seed.
SEED = ["base_seed", "repetition"]
RUN = PROBLEM + ["solver"] + SEED


def rename_columns(results: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of benchopt's results our names."""
    return results.rename(columns=_own_name)


def measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured at an evaluation, from a row of benchopt's.

    These are ``seconds`` of training, and all that objective.py returns.
    """
    return {"seconds": row["time"]} | {
        _own_name(name): value for name, value in row.items()
        if name.startswith(PREFIX) and name != "objective_name"
    }


def logged(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was measured the names of a run's CSV file."""
    return {LOGGED.get(name, name): value
            for name, value in evaluation.items()}


def add_to_row(row: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Add facts, by our names, to a row of benchopt's."""
    row.update({f"{PREFIX}{name}": value for name, value in facts.items()})


def _own_name(name):
    return NAMES.get(name, name.removeprefix(PREFIX))
