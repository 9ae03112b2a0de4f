"""The curves to compare: validation loss against steps, tokens or time."""
import numpy as np
from benchopt import BasePlot

COLUMNS = {
    "steps": "objective_step", "tokens": "objective_tokens",
    "seconds": "time",
}


class Plot(BasePlot):
    """One curve per solver: the median over repetitions, between the lowest
    and the highest. The grey line is the target."""

    name = "Validation loss"
    type = "scatter"
    options = {
        "dataset": ...,
        "objective": ...,
        "against": list(COLUMNS),
    }

    def plot(self, df, dataset, objective, against):
        df = df[
            (df["dataset_name"] == dataset)
            & (df["objective_name"] == objective)
        ]
        # benchopt asks for all combinations, also those that did not run.
        if df.empty:
            return []
        # A diverged evaluation has no place on the axis.
        df = df[np.isfinite(df["objective_value"])]
        column = COLUMNS[against]
        curves = []
        for solver, rows in df.groupby("solver_name"):
            groups = rows.groupby("stop_val")
            losses = groups["objective_value"]
            curve = {
                "x": groups[column].median().tolist(),
                "y": losses.median().tolist(),
                "label": solver, **self.get_style(solver),
            }
            if rows["idx_rep"].nunique() > 1:
                curve |= {
                    "y_low": losses.min().tolist(),
                    "y_high": losses.max().tolist(),
                }
            curves.append(curve)
        target = float(df["objective_target"].iloc[0])
        ends = [float(df[column].min()), float(df[column].max())]
        curves.append({
            "x": ends, "y": [target, target], "label": f"target {target:.4g}",
            "color": (0.4, 0.4, 0.4, 1.0), "marker": None,
        })
        return curves

    def get_metadata(self, df, dataset, objective, against):
        return {
            "title": f"{objective}\nData: {dataset}",
            "xlabel": "training seconds" if against == "seconds" else against,
            "ylabel": "validation loss (nats per token)",
            "scale": "linear",
        }

