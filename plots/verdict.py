"""The table of the report: steps to target, and a verdict for each solver."""
from benchopt import BasePlot

from benchmark_utils.results.formats import cells
from benchmark_utils.results.problems import (
    describe, problem_options, select
)
from benchmark_utils.results.table import runs
from benchmark_utils.results.verdict import verdict


class Plot(BasePlot):
    """What ``python -m benchmark_utils.report`` prints."""

    name = "Verdict"
    type = "table"
    options = {"problem": problem_options}

    def plot(self, df, problem):
        found = verdict(runs(select(df, problem)))
        words = dict(zip(found.comparisons, found.sentences))
        _, *rows = cells(found)
        return [
            [rank, *map(_literal, row), _literal(words.get(row[0], ""))]
            for rank, row in enumerate(rows, start=1)
        ]

    def get_metadata(self, df, problem):
        evaluations = select(df, problem)
        found = verdict(runs(evaluations))
        header, *_ = cells(found)
        return {
            "title": "\n".join([
                f"Steps to target, against {found.baseline}",
                describe(evaluations, problem),
            ]),
            # benchopt sorts by the first column.
            "columns": ["#", *header, "verdict"],
        }


def _literal(text):
    """A text in which benchopt finds no markup."""
    return text.replace("*", r"\*").replace("_", r"\_")
