"""Speed against efficiency: time per step against steps to target."""
import numpy as np
from benchopt import BasePlot

from benchmark_utils.analysis import scatter
from benchmark_utils.analysis.labels import describe
from benchmark_utils.analysis.sweeps import equal_times
from benchmark_utils.analysis.table import problem_options, runs, select


class Plot(BasePlot):
    """One point per run that reached the target. On a grey line, all runs
    take the same time; lighter is faster."""

    name = "Speed"
    type = "scatter"
    options = {"problem": problem_options}

    def plot(self, df, problem):
        table = runs(select(df, problem))
        lines = equal_times(table).groupby("seconds")
        # Longer times are darker.
        shades = np.linspace(0.8, 0.4, len(lines))
        drawn = [
            scatter.line(rows["steps"], rows["ms_per_step"], {
                "label": f"{seconds:g} s", "color": (shade,) * 3 + (1.0,)
            })
            for shade, (seconds, rows) in zip(shades, lines, strict=True)
        ]
        for label, rows in table.groupby("label", sort=False):
            reached = rows[rows["reached"]]
            if len(reached):
                drawn.append(scatter.points(
                    reached["steps_to_target"], reached["ms_per_step"],
                    self.get_style(label) | {
                        "label": f"{label} ({len(reached)} of {len(rows)})"
                    },
                ))
        return drawn

    def get_metadata(self, df, problem):
        return {
            "title": "Speed against efficiency; grey: equal time\n"
            + describe(select(df, problem), problem),
            "xlabel": "steps to target",
            "ylabel": "ms per step",
            "scale": "linear",
        }
