"""Tables of results: evaluations, and runs, of one problem at a time."""
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmark_utils.analysis.columns import (
    OBJECTIVE,
    RUN,
    SEED,
    rename_columns,
)
from benchmark_utils.analysis.labels import family, labels, problem_names

NEEDED = RUN + [
    "val_loss", "seconds", "step", "tokens", "num_steps", "target",
    "diverged", "steps_to_target", "tokens_to_target", "seconds_to_target",
    "stop_reason", "peak_memory_mib",
]


class ResultsError(ValueError):
    """Results, or options, that don't allow a report."""


class RepeatedRuns(UserWarning):
    """The same run is in the results more than once."""


def read(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read the evaluations (see ``plain``) in benchopt's parquet files.

    ``source`` is the name of the file. If a run appears more than once, the
    newest copy counts, and a ``RepeatedRuns`` warns.

    Raises
    ------
    ResultsError
        If a file is not of this benchmark, or two runs in it are
        indistinguishable.
    FileNotFoundError
    """
    parts = []
    for path in dict.fromkeys(map(Path, paths)):
        if not path.exists():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            if path.is_dir():
                raise ValueError("it is a folder. Name the files in it.")
            part = _renamed(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"{path} is not a file of results of this benchmark: {error}"
            ) from None
        parts.append(part.assign(source=str(path)))
    # A column that only some files have is missing in the others, whatever
    # its type.
    return _sorted(_once(pd.concat(parts, ignore_index=True)))


def plain(results: pd.DataFrame) -> pd.DataFrame:
    """Rename and sort benchopt's results, as ``read_results`` returns them
    and plots receive them.

    Returns
    -------
    evaluations : DataFrame
        One row per evaluation: ``dataset``, ``objective``, ``solver``
        (benchopt's full names), ``base_seed``, ``repetition``, ``step``,
        ``tokens``, ``seconds`` (of training, without evaluations),
        ``val_loss`` (nats per token) and everything else that objective.py
        returns, under its names there. Sorted by run and step.

    Raises
    ------
    ResultsError
        If columns or all rows are missing, or two runs are
        indistinguishable.
    """
    return _sorted(_once(_renamed(results)))


def _renamed(results):
    evaluations = rename_columns(results)
    if "base_seed" not in evaluations:
        evaluations["base_seed"] = 0
    missing = [name for name in NEEDED if name not in evaluations]
    if missing:
        raise ResultsError(
            f"it lacks {len(missing)} required columns, such as {missing[0]}."
        )
    if evaluations.empty:
        raise ResultsError("it holds no evaluations.")
    return evaluations


def _once(evaluations):
    """Keep one copy of every run. A problem's name leaves out switches that
    don't change results, such as ``log``: runs that differ only in these are
    the same run, as are those that several files or commands repeat."""
    switches = [
        name for name in evaluations
        if name.startswith((OBJECTIVE, "source", "run_date"))
        and evaluations[name].nunique(dropna=False) > 1
    ]
    evaluations = evaluations.assign(copy=(
        evaluations.groupby(switches, dropna=False, sort=False).ngroup()
        if switches else 0
    ))
    copies = evaluations.groupby(RUN)["copy"].nunique()
    if (copies > 1).any():
        warnings.warn(
            f"{(copies > 1).sum()} runs appear more than once in the results: "
            "the newest of each counts.",
            RepeatedRuns, stacklevel=3,
        )
        order = evaluations.sort_values("run_date", kind="stable")
        newest = order.groupby(RUN)["copy"].transform("last")
        evaluations = order[order["copy"] == newest]
    twice = evaluations[evaluations.duplicated(RUN + ["step"])]
    if len(twice):
        raise ResultsError(
            f"two runs of {twice['solver'].iloc[0]} have the same name, seed "
            "and repetition: give their solvers different names."
        )
    return evaluations.drop(columns="copy")


def _sorted(evaluations):
    return evaluations.sort_values(
        RUN + ["step"], kind="stable", ignore_index=True
    )


def one_problem(
    evaluations: pd.DataFrame, dataset: str, objective: str
) -> pd.DataFrame:
    """Select the evaluations on one problem; empty if there are none.

    ``label`` is the short name of the solver among the solvers of the
    problem, ``family`` that without parameters.

    Raises
    ------
    ResultsError
        If the runs have different targets.
    """
    rows = evaluations[
        (evaluations["dataset"] == dataset)
        & (evaluations["objective"] == objective)
    ]
    targets = sorted(rows["target"].unique())
    if len(targets) > 1:
        raise ResultsError(
            f"The runs on {dataset} have different targets, "
            f"{' and '.join(f'{target:g}' for target in targets)}, and are "
            "not comparable. Report their files one by one."
        )
    families = {
        row["solver"]: family(row["solver"], row)
        for _, row in rows.drop_duplicates("solver").iterrows()
    }
    return rows.assign(
        label=rows["solver"].map(labels(rows)),
        family=rows["solver"].map(families),
    ).reset_index(drop=True)


def problem_options(results: pd.DataFrame) -> list[str]:
    """List the names of the problems in benchopt's results, as the choices
    of a plot."""
    return list(problem_names(plain(results)))


def select(results: pd.DataFrame, problem: str) -> pd.DataFrame:
    """Select the evaluations (see ``one_problem``) on one problem of
    benchopt's results, by its name in ``problem_options``."""
    evaluations = plain(results)
    return one_problem(evaluations, *problem_names(evaluations)[problem])


def runs(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Reduce the evaluations of ``one_problem`` to one row per run.

    Returns
    -------
    runs : DataFrame
        All columns of the run's last evaluation (so ``val_loss``, ``step``,
        ``tokens`` and ``seconds`` are final values), and

        - ``steps_to_target``, ``tokens_to_target``, ``seconds_to_target``:
          infinite if the run never reached it
        - ``reached`` : bool
        - ``diverged`` : bool, at any evaluation
        - ``trained_to`` : int, the step up to which a run without a crossing
          is known to miss the target. For a diverged run this is its horizon:
          it would never have reached the target.
        - ``ms_per_step`` : float, training only; nan for a run of no steps
        - ``peak_memory_mib`` : float, the highest
        - ``started``, ``ended`` : float, the clock at the first and the last
          evaluation, in seconds since 1970, if the results have it

        ordered by solver as in ``labels``, then by repetition.
    """
    groups = evaluations.groupby(RUN, sort=False)
    last = groups.tail(1).set_index(RUN)
    first = groups.head(1).set_index(RUN)
    steps = (last["step"] - first["step"]).astype(float)
    diverged = groups["diverged"].max().astype(bool)
    rows = last.assign(
        reached=last["steps_to_target"] < float("inf"),
        diverged=diverged,
        trained_to=last["step"].where(~diverged, last["num_steps"]),
        ms_per_step=(
            1000 * (last["seconds"] - first["seconds"])
            / steps.where(steps > 0)
        ),
        peak_memory_mib=groups["peak_memory_mib"].max(),
    )
    if "wall_time" in evaluations:
        clock = groups["wall_time"]
        rows = rows.assign(started=clock.min(), ended=clock.max())
    rows = rows.reset_index()
    order = {name: i for i, name in enumerate(labels(rows))}
    return rows.sort_values(
        ["solver"] + SEED, ignore_index=True, kind="stable",
        key=lambda column: (
            column.map(order) if column.name == "solver" else column
        ),
    )
