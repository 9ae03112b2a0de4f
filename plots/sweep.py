"""Tuning: steps to target or final loss against a parameter of solvers."""
import numpy as np
from benchopt import BasePlot

from benchmark_utils.analysis import scatter
from benchmark_utils.analysis.labels import describe
from benchmark_utils.analysis.sweeps import (
    MEASURES,
    NO_POINTS,
    at_the_edge,
    logarithmic,
    sweep,
    swept_parameters,
)
from benchmark_utils.analysis.table import (
    plain,
    problem_options,
    runs,
    select,
)

COLUMNS = {words: column for column, words in MEASURES.items()}
NONE = "no parameter was swept"


def parameter_options(results):
    return swept_parameters(runs(plain(results))) or [NONE]


class Plot(BasePlot):
    """One line per solver, the median over repetitions. A star is its best
    value; a cross at the upper edge is a value with which half of the runs or
    more diverged or, of steps, never reached the target."""

    name = "Sweep"
    type = "scatter"
    options = {
        "parameter": parameter_options,
        "measure": list(COLUMNS),
        "problem": problem_options,
    }

    def plot(self, df, parameter, measure, problem):
        table = runs(select(df, problem))
        # benchopt asks for all combinations, even those that did not run.
        if parameter not in swept_parameters(table):
            return []
        found = at_the_edge(sweep(table, parameter, COLUMNS[measure]))
        drawn = []
        for label, rows in found.groupby("label", sort=False):
            style = self.get_style(label) | {"label": label}
            finite = np.isfinite(rows["median"])
            inside = rows[finite]
            drawn.append(
                scatter.line(inside["value"], inside["y"], style) | {
                    "y_low": inside["low"].tolist(),
                    "y_high": inside["high"].tolist(),
                }
            )
            for marker, chosen in [
                (scatter.CROSS, rows[~finite]),
                (scatter.STAR, rows[rows["best"]]),
                (scatter.CIRCLE, inside[~inside["best"]]),
            ]:
                drawn.append(scatter.points(
                    chosen["value"], chosen["y"], style | {"marker": marker}
                ))
        return drawn

    def get_metadata(self, df, parameter, measure, problem):
        evaluations = select(df, problem)
        table = runs(evaluations)
        if parameter in swept_parameters(table):
            title = f"{measure.capitalize()} against {parameter}"
            column = COLUMNS[measure]
            title += (
                f"; {NO_POINTS[column]}"
                if at_the_edge(sweep(table, parameter, column)).empty
                else "; star: best, cross: diverged or never there"
            )
            log = logarithmic(table, parameter)
        else:
            title, log = NONE.capitalize(), False
        return {
            "title": f"{title}\n{describe(evaluations, problem)}",
            "xlabel": "" if parameter == NONE else parameter,
            "ylabel": measure,
            "scale": "semilog-x" if log else "linear",
        }
