"""Sweeps: results against solver parameters, and steps against speed."""
import numpy as np
import pandas as pd

from benchmark_utils.analysis.columns import SOLVER
from benchmark_utils.analysis.labels import labels

# Measures drawn against a parameter, and the message if there are no points.
MEASURES = {"steps_to_target": "steps to target", "val_loss": "final loss"}
NO_POINTS = {
    "steps_to_target": "no value reached the target with half of its runs",
    "val_loss": "half of the runs or more diverged at every value",
}


def swept_parameters(runs):
    """List the numeric parameters of which some solver ran with several
    values, all else equal; learning rates first."""
    found = []
    for column in runs.columns:
        if column.startswith(SOLVER) and column != f"{SOLVER}optimizer":
            values = pd.to_numeric(runs[column], errors="coerce")
            groups = values.groupby(_without(runs, column))
            if (groups.nunique() > 1).any():
                found.append(column.removeprefix(SOLVER))
    return sorted(
        found, key=lambda name: (not name.endswith("learning_rate"), name)
    )


def _without(runs, column):
    """Name the solvers without one of their parameters."""
    others = [
        name for name in runs.columns
        if name.startswith(SOLVER) and name != column
    ]
    # A parameter that a solver doesn't have is a missing value, which
    # ``astype(str)`` would leave missing.
    values = runs[others].map(str).agg(",".join, axis=1)
    return runs["solver"].str.partition("[")[0] + "[" + values


def sweep(runs, parameter, measure):
    """Summarize results against one of the solvers' parameters.

    Parameters
    ----------
    runs : DataFrame
        See ``table.runs``.
    parameter : str
        One of ``swept_parameters``.
    measure : {"steps_to_target", "val_loss"}
        The loss is the final one.

    Returns
    -------
    points : DataFrame
        One row per solver and value: ``label`` (of the solver without this
        parameter), ``value``, ``median``, ``low`` and ``high`` over the
        repetitions, ``repetitions`` and ``diverged`` (counts), ``best``
        (bool, the lowest median of the label). ``median`` is infinite where
        half of the runs diverged or, of steps, never reached the target;
        ``low`` and ``high`` are of the finite ones.
    """
    column = SOLVER + parameter
    rows = runs.assign(
        value=pd.to_numeric(runs[column], errors="coerce"),
        solver=_without(runs, column),
        y=runs[measure].where(~runs["diverged"] | runs["reached"], np.inf),
    ).drop(columns=column)
    several = rows.groupby("solver")["value"].transform("nunique") > 1
    rows = rows[several & rows["value"].notna()]
    rows["label"] = rows["solver"].map(labels(rows))
    finite = rows["y"].where(np.isfinite(rows["y"]))
    groups = rows.assign(finite=finite).groupby(["label", "value"])
    points = groups.agg(
        median=("y", "median"), low=("finite", "min"), high=("finite", "max"),
        repetitions=("y", "size"), diverged=("diverged", "sum"),
    ).reset_index()
    best = points.groupby("label")["median"].transform("min")
    points["best"] = np.isfinite(best) & (points["median"] == best)
    return points


def at_the_edge(points):
    """Add ``y``, the height of each point in a figure: the median, or the
    upper edge if that is infinite, a little apart for each solver. Empty if
    all medians are infinite, because there is no scale then."""
    if not np.isfinite(points["median"]).any():
        return points.iloc[:0].assign(y=[])
    top, bottom = points["high"].max(), points["low"].min()
    span = top - bottom if top > bottom else abs(top)
    line = pd.factorize(points["label"])[0]
    edge = top + span * (0.1 + 0.04 * line)
    return points.assign(
        y=points["median"].where(np.isfinite(points["median"]), edge)
    )


def logarithmic(runs, parameter):
    """Whether a parameter needs a logarithmic axis: learning rates, weight
    decays and epsilons, if all are above 0."""
    if not parameter.endswith(("learning_rate", "weight_decay", "eps")):
        return False
    values = pd.to_numeric(runs[SOLVER + parameter], errors="coerce").dropna()
    return bool((values > 0).all())


def equal_times(runs):
    """Compute lines of equal time between the fastest and the slowest run.

    Returns
    -------
    lines : DataFrame
        ``seconds``, ``steps`` and ``ms_per_step``; the product of the last
        two is the first. The lines end where the runs do.
    """
    rows = runs[runs["reached"] & (runs["ms_per_step"] > 0)]
    steps, ms = rows["steps_to_target"], rows["ms_per_step"]
    seconds = steps * ms / 1000
    times = {
        float(f"{time:.2g}")
        for time in np.linspace(seconds.min(), seconds.max(), 4)
    }
    lines = []
    for time in sorted(times):
        # The widest part of the line within the runs' ranges.
        low = max(0.9 * steps.min(), 1000 * time / (1.1 * ms.max()))
        high = min(1.1 * steps.max(), 1000 * time / (0.9 * ms.min()))
        if low < high:
            x = np.geomspace(low, high, 25)
            lines.append(pd.DataFrame({
                "seconds": time, "steps": x, "ms_per_step": 1000 * time / x
            }))
    if not lines:
        return pd.DataFrame(columns=["seconds", "steps", "ms_per_step"])
    return pd.concat(lines, ignore_index=True)
