"""The pictures of ``plots/`` as PDF and PNG, at the width of a column.

    python -m benchmark_utils.report --figures FOLDER
"""
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark_utils.results.curves import (
    AXES, highest_loss, median_curves, seed_curves, share_reached
)
from benchmark_utils.results.problems import (
    describe, outcome, problem_names
)
from benchmark_utils.results.sweeps import (
    at_the_edge, equal_times, logarithmic, sweep, swept_parameters
)
from benchmark_utils.results.table import one_problem, runs

# Inches; a column of most two-column papers is 3.3 to 3.5 wide.
WIDTH, HEIGHT, LEGEND_ROW = 3.4, 2.4, 0.14
MARKERS = "osD^vPXphd<>*H8"
DPI = 300
SETTINGS = {"font.size": 7, "axes.titlesize": 7, "legend.fontsize": 6}
MEASURES = {"steps_to_target": "steps to target", "val_loss": "final loss"}


def save_figures(evaluations, folder):
    """Draw every picture of every problem.

    Parameters
    ----------
    evaluations : DataFrame
        See ``table.read``.
    folder : path
        Made if it isn't there. Files of the same names are replaced.

    Returns
    -------
    paths : list of Path
        ``PICTURE.pdf`` and ``PICTURE.png``, in a folder for each problem if
        there are several.
    """
    names = problem_names(evaluations)
    paths = []
    for name, problem in names.items():
        place = Path(folder)
        if len(names) > 1:
            place /= re.sub(r"[^\w=.-]+", "_", name)
        place.mkdir(parents=True, exist_ok=True)
        rows = one_problem(evaluations, *problem)
        for picture, figure in _figures(rows, describe(rows, name)):
            for suffix in ["pdf", "png"]:
                path = place / f"{picture}.{suffix}"
                figure.savefig(path, dpi=DPI)
                paths.append(path)
    return paths
