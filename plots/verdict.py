"""The table of the report: steps to target, and the comparison."""
import re

from benchopt import BasePlot

from benchmark_utils.analysis.formats import cells
from benchmark_utils.analysis.labels import describe
from benchmark_utils.analysis.table import problem_options, runs, select
from benchmark_utils.analysis.text import in_short
from benchmark_utils.analysis.verdict import verdict

# A page that could not load its scripts shows nothing but this title.
HELP = (
    "In words: python -m benchmark_utils.report. No table here? There is "
    "no network: add --html."
)


class Plot(BasePlot):
    """The table that ``python -m benchmark_utils.report`` prints."""

    name = "Verdict"
    type = "table"
    options = {"problem": problem_options}

    def plot(self, df, problem):
        found = verdict(runs(select(df, problem)))
        _, *rows = cells(found)
        return [
            [rank, *map(_literal, _in_order(
                row, in_short(found.comparisons.get(row[0]))
            ))] for rank, row in enumerate(rows, start=1)
        ]

    def get_metadata(self, df, problem):
        evaluations = select(df, problem)
        found = verdict(runs(evaluations))
        header, *_ = cells(found)
        return {
            "title": "\n".join([
                f"Steps to target on {describe(evaluations, problem)}", HELP
            ]),
            # benchopt sorts by the first column.
            "columns": ["#", *_in_order(header, f"against {found.baseline}")],
        }


def _in_order(cells, comparison):
    """Put the important columns first, because small screens cut off the
    rest."""
    solver, reached, steps, loss, speed, memory, ratio = cells
    return [solver, reached, steps, comparison, ratio, loss, speed, memory]


def _literal(text):
    """Escape benchopt's markup, and hyphens at which a browser would break
    4e-06."""
    text = re.sub(r"(\de)-(\d)", "\\1\u2011\\2", text)
    return text.replace("*", r"\*").replace("_", r"\_")
