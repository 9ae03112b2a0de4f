"""A forest plot: steps saved against the baseline, with intervals."""
import math

from benchopt import BasePlot

from benchmark_utils.analysis import scatter
from benchmark_utils.analysis.comparison import steps_saved, title_of
from benchmark_utils.analysis.labels import describe
from benchmark_utils.analysis.table import problem_options, runs, select
from benchmark_utils.analysis.verdict import verdict


class Plot(BasePlot):
    """A box is the 95 % interval, the line in it the estimate. If the box
    contains 0, the seeds show no difference."""

    name = "Steps saved"
    type = "boxplot"
    options = {"problem": problem_options}

    def plot(self, df, problem):
        saved, without = steps_saved(verdict(runs(select(df, problem))))
        if saved.empty:
            # The script of benchopt's page stops at a boxplot without boxes.
            # A box without numbers gives an empty figure.
            return [{
                "x": without[:1], "y": [[math.nan] * 5], "label": without[0],
                "color": scatter.GREY,
            }]
        drawn = []
        for row in saved.itertuples():
            low, high, opacity = row.low, row.high, 0.5
            if low != low:
                # A line without the fill of an interval is opaque.
                low = high = row.saved
                opacity = 1.0
            color = self.get_style(row.label)["color"]
            drawn.append({
                "x": [row.label],
                # The quartiles and the median of these five are the ends of
                # the interval and the estimate.
                "y": [[low, low, row.saved, high, high]],
                "label": row.label,
                # Edge and fill have one color; the edge shows where it
                # covers the fill.
                "color": (*color[:3], opacity),
            })
        return drawn

    def get_metadata(self, df, problem):
        evaluations = select(df, problem)
        found = verdict(runs(evaluations))
        title = title_of(found.baseline, *steps_saved(found))
        return {
            "title": f"{title}\n{describe(evaluations, problem)}",
            "xlabel": "",
            "ylabel": f"steps saved against {found.baseline} (%)",
            "scale": "linear",
        }
