"""Share of runs that reached the target, by step."""
from benchopt import BasePlot

from benchmark_utils.analysis import scatter
from benchmark_utils.analysis.curves import share_reached
from benchmark_utils.analysis.labels import describe, legends
from benchmark_utils.analysis.table import problem_options, runs, select


class Plot(BasePlot):
    """The Kaplan-Meier curve of each solver: it rises where a run reaches the
    target. A tick is a run that ended before it did."""

    name = "Steps to target"
    type = "scatter"
    options = {"problem": problem_options}

    def plot(self, df, problem):
        table = runs(select(df, problem))
        names = legends(table)
        curves, censored = share_reached(table)
        # The grey line keeps the axis at 0 to 1 if few runs reach the target.
        drawn = [scatter.line([0, curves["steps"].max()], [1, 1], {
            "label": "all runs", "color": scatter.GREY
        })]
        for label, curve in curves.groupby("label", sort=False):
            style = self.get_style(label) | {"label": names[label]}
            drawn.append(scatter.line(curve["steps"], curve["share"], style))
            ticks = censored[censored["label"] == label]
            if len(ticks):
                drawn.append(scatter.points(
                    ticks["steps"], ticks["share"],
                    style | {"marker": scatter.TICK},
                ))
            # Markers tell solvers with the same share apart.
            rises = curve[curve["share"].diff() > 0]
            drawn.append(scatter.points(rises["steps"], rises["share"], style))
        return drawn

    def get_metadata(self, df, problem):
        return {
            "title": "Share of runs at the target; tick: ended before\n"
            + describe(select(df, problem), problem),
            "xlabel": "steps",
            "ylabel": "share of runs at the target",
            "scale": "linear",
        }
