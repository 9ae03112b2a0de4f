"""The curves to compare: validation loss against steps, tokens or time."""
from benchopt import BasePlot

COLUMNS = {
    "steps": "objective_step", "tokens": "objective_tokens",
    "seconds": "time",
}


class Plot(BasePlot):
    """One curve per solver: the median over repetitions, between the lowest
    and the highest. A repetition that has ended, at the target or diverged,
    counts with its last loss. The grey line is the target."""

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
        column = COLUMNS[against]
        curves = []
        for solver, rows in df.groupby("solver_name"):
            losses = rows.pivot_table(
                index="stop_val", columns="idx_rep", values="objective_value",
                aggfunc="last",
            ).ffill()
            median = losses.median(axis=1)
            # A loss twice that of the untrained model has no place on the
            # axis, where it would hide all the others.
            limit = 2 * losses.iloc[0].max()
            drawn = median <= limit
            band = losses[drawn].where(losses <= limit)
            x = rows.groupby("stop_val")[column].median()
            diverged = (
                rows.groupby("idx_rep")["objective_diverged"].max().sum()
            )
            curve = {
                "x": x[drawn].tolist(),
                "y": median[drawn].tolist(),
                "label": solver + (
                    f" ({diverged} of {losses.shape[1]} diverged)"
                    if diverged else ""
                ),
                **self.get_style(solver),
            }
            if losses.shape[1] > 1:
                curve |= {
                    "y_low": band.min(axis=1).tolist(),
                    "y_high": band.max(axis=1).tolist(),
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

