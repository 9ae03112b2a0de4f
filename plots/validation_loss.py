"""Validation loss against steps, tokens or training time."""
import numpy as np
from benchopt import BasePlot

from benchmark_utils.analysis import scatter
from benchmark_utils.analysis.columns import SEED
from benchmark_utils.analysis.curves import (
    AXES,
    highest_loss,
    in_order,
    median_curves,
    seed_curves,
    shows_target,
)
from benchmark_utils.analysis.labels import describe, legends
from benchmark_utils.analysis.table import problem_options, runs, select

NEAR = "near the target"
SEEDS = "every seed"


class Plot(BasePlot):
    """One curve per solver: the median over repetitions, between the lowest
    and the highest; or every repetition. The grey line is the target."""

    name = "Validation loss"
    type = "scatter"
    options = {
        "against": list(AXES),
        "zoom": ["the whole run", NEAR],
        "lines": ["median and range", SEEDS],
        "problem": problem_options,
    }

    def plot(self, df, against, zoom, lines, problem):
        evaluations = select(df, problem)
        highest = highest_loss(evaluations, near_target=zoom == NEAR)
        names = legends(runs(evaluations))
        compute = seed_curves if lines == SEEDS else median_curves
        curves = compute(evaluations, against, highest)
        drawn = []
        for label, curve in in_order(curves, names):
            style = self.get_style(label) | {"label": names[label]}
            if lines != SEEDS:
                marks = scatter.some(curve["x"], curve["val_loss"], style)
            else:
                ends = curve.groupby(SEED).tail(1)
                marks = scatter.points(ends["x"], ends["val_loss"], style)
                curve = _with_gaps(curve)
            trace = scatter.line(curve["x"], curve["val_loss"], style)
            if lines != SEEDS and curve["low"].notna().any():
                trace |= {
                    "y_low": curve["low"].tolist(),
                    "y_high": curve["high"].tolist(),
                }
            drawn += [trace, marks]
        target = evaluations["target"].iloc[0]
        if shows_target(evaluations, near_target=zoom == NEAR):
            drawn.append(scatter.line(
                [curves["x"].min(), curves["x"].max()], [target, target],
                {"label": f"target {target:.4g}", "color": scatter.GREY},
            ))
        return drawn

    def get_metadata(self, df, against, zoom, lines, problem):
        return {
            "title": f"Validation loss, {lines}\n"
            + describe(select(df, problem), problem),
            "xlabel": "training seconds" if against == "seconds" else against,
            "ylabel": "validation loss (nats per token)",
            "scale": "linear",
        }


def _with_gaps(curves):
    """Join the curves of all runs, separated by nan."""
    starts = np.flatnonzero(
        curves.groupby(SEED, sort=False).ngroup().diff() > 0
    )
    return {
        name: np.insert(curves[name].to_numpy(), starts, np.nan)
        for name in ["x", "val_loss"]
    }
