"""Traces of benchopt's scatter plots: lines, and points.

benchopt joins all points of a trace by a line and marks each of them. A nan
between two points leaves a gap, and ``NO_MARKER`` leaves no mark. This can't
lie in plots/, where benchopt loads every file as a plot.
"""
import numpy as np

# plotly's symbols, by number. The first is not drawn unless outlined.
NO_MARKER, CIRCLE, CROSS, STAR, TICK = 42, 0, 4, 17, 142
GREY = (0.6, 0.6, 0.6, 1.0)


def line(x, y, style):
    """A line without markers.

    Parameters
    ----------
    x, y : array_like
    style : dict
        ``label`` and ``color``.
    """
    return {**style, "marker": NO_MARKER, "x": _floats(x), "y": _floats(y)}


def points(x, y, style):
    """Markers without a line; ``style`` has the ``marker``, too."""
    return {
        **style,
        "x": [value for single in _floats(x) for value in (single, np.nan)],
        "y": [value for single in _floats(y) for value in (single, np.nan)],
    }


def some(x, y, style, count=8):
    """Markers on some points of a line, evenly spread, the last among them:
    hundreds of markers would merge into a thick line."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    drawn = np.flatnonzero(np.isfinite(y))
    chosen = drawn[np.unique(
        np.linspace(0, len(drawn) - 1, count).round().astype(int)
    )]
    return points(x[chosen], y[chosen], style)


def _floats(values):
    return [float(value) for value in values]
