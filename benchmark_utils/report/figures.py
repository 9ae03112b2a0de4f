"""Figures for papers: those of ``plots/``, in the width of a column.

    python -m benchmark_utils.report --figures FOLDER
"""
import re
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmark_utils.analysis.columns import SEED
from benchmark_utils.analysis.comparison import steps_saved, title_of
from benchmark_utils.analysis.curves import (
    AXES,
    highest_loss,
    in_order,
    median_curves,
    seed_curves,
    share_reached,
    shows_target,
)
from benchmark_utils.analysis.labels import describe, legends, problem_names
from benchmark_utils.analysis.sweeps import (
    MEASURES,
    NO_POINTS,
    at_the_edge,
    equal_times,
    logarithmic,
    sweep,
    swept_parameters,
)
from benchmark_utils.analysis.table import one_problem, runs
from benchmark_utils.analysis.verdict import verdict

# Inches; a column of most two-column papers is 3.3 to 3.5 wide.
WIDTH, HEIGHT, ROW = 3.4, 2.5, 0.13
SETTINGS = {
    "font.size": 7, "figure.titlesize": 7, "legend.fontsize": 5.5,
    "lines.linewidth": 1, "lines.markersize": 3, "axes.grid": True,
    "grid.linewidth": 0.3, "grid.color": "0.8", "pdf.fonttype": 42,
}
GREY = "0.5"
MARKERS = "osD^vPXphd<>*H8"
COLORS = matplotlib.colormaps["tab20"].colors
COLORS = COLORS[::2] + COLORS[1::2]


def save_figures(evaluations, folder, baseline=None):
    """Draw every figure of every problem, as PDF and PNG.

    Parameters
    ----------
    evaluations : DataFrame
        See ``table.read``.
    folder : path
        Created if missing. Files of the same names are replaced.
    baseline : str or None
        See ``comparison.choose_baseline``.

    Returns
    -------
    paths : list of Path
        ``FIGURE.pdf`` and ``FIGURE.png``, in a folder for each problem if
        there are several.
    """
    names = problem_names(evaluations)
    paths = []
    for number, (name, problem) in enumerate(names.items(), start=1):
        place = Path(folder)
        if len(names) > 1:
            # The number tells names apart that differ in other characters.
            place /= f"{number}_{re.sub(r'[^0-9A-Za-z=.-]+', '_', name)}"
        place.mkdir(parents=True, exist_ok=True)
        rows = one_problem(evaluations, *problem)
        with matplotlib.rc_context(SETTINGS):
            for stem, figure in _figures(rows, name, baseline):
                for suffix in ["pdf", "png"]:
                    paths.append(place / f"{stem}.{suffix}")
                    figure.savefig(paths[-1], dpi=300)
    return paths


def _figures(evaluations, name, baseline):
    """Yield pairs of a file's stem and its figure."""
    table = runs(evaluations)
    labels = table["label"].unique()
    styles = {
        label: {
            "color": COLORS[index % len(COLORS)],
            "marker": MARKERS[index % len(MARKERS)],
        } for index, label in enumerate(labels)
    }
    subtitle = describe(evaluations, name)
    for axis in AXES:
        yield f"loss_against_{axis}", _losses(
            evaluations, axis, styles, subtitle
        )
        yield f"loss_against_{axis}_near_target", _losses(
            evaluations, axis, styles, subtitle, near_target=True
        )
    yield "steps_to_target", _steps_to_target(table, styles, subtitle)
    yield "steps_saved", _steps_saved(verdict(table, baseline), subtitle)
    yield "speed", _speed(table, styles, subtitle)
    for parameter in swept_parameters(table):
        for measure in MEASURES:
            yield f"{measure}_against_{parameter}", _sweep(
                table, parameter, measure, subtitle
            )


def _losses(evaluations, axis, styles, subtitle, near_target=False):
    """Draw medians and ranges of whole runs, or every seed near the target."""
    highest = highest_loss(evaluations, near_target)
    names = legends(runs(evaluations))
    compute = seed_curves if near_target else median_curves
    curves = compute(evaluations, axis, highest)
    figure, axes = _start(
        f"Validation loss, {'every seed' if near_target else 'median'}",
        subtitle, "training seconds" if axis == "seconds" else axis,
        "validation loss (nats per token)",
    )
    target = evaluations["target"].iloc[0]
    if axis == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter())
    if shows_target(evaluations, near_target):
        axes.axhline(
            target, color=GREY, label=f"target {target:.4g}", zorder=1
        )
    for label, curve in in_order(curves, names):
        style = styles[label]
        if not near_target:
            axes.plot(
                curve["x"], curve["val_loss"], **style, label=names[label],
                markevery=max(1, len(curve) // 8),
            )
            axes.fill_between(
                curve["x"], curve["low"], curve["high"],
                color=style["color"], alpha=0.3, linewidth=0,
            )
            continue
        text = names[label]
        for _, seed in curve.groupby(SEED):
            axes.plot(
                seed["x"], seed["val_loss"], **style, label=text,
                markevery=[-1],
            )
            text = None
    return _finish(figure, axes)


def _steps_to_target(table, styles, subtitle):
    curves, censored = share_reached(table)
    names = legends(table)
    figure, axes = _start(
        "Share of runs at the target (tick: ended before)", subtitle, "steps",
        "share of runs at the target",
    )
    for label, curve in curves.groupby("label", sort=False):
        style = styles[label]
        rises = np.flatnonzero(curve["share"].diff() > 0)
        axes.plot(
            curve["steps"], curve["share"], **style, label=names[label],
            markevery=list(rises),
        )
        ticks = censored[censored["label"] == label]
        axes.plot(
            ticks["steps"], ticks["share"], "|", color=style["color"],
            markersize=7,
        )
    axes.set_ylim(-0.03, 1.03)
    return _finish(figure, axes)


def _steps_saved(found, subtitle):
    saved, without = steps_saved(found)
    figure, axes = _start(
        title_of(found.baseline, saved, without), subtitle, "steps saved (%)",
        "",
    )
    if saved.empty:
        return _explain(figure, axes, "there is nothing to compare with")
    figure.set_figheight(1.1 + ROW * 1.1 * len(saved))
    places = np.arange(len(saved))[::-1]
    axes.errorbar(
        saved["saved"], places,
        xerr=[saved["saved"] - saved["low"], saved["high"] - saved["saved"]],
        fmt="s", color="black", markersize=3, capsize=2, linewidth=1,
    )
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set_yticks(places, saved["label"])
    axes.set_ylim(-0.6, len(saved) - 0.4)
    if len(saved) == 1:
        axes.set_xlim(-10, 10)
    return figure


def _sweep(table, parameter, measure, subtitle):
    points = at_the_edge(sweep(table, parameter, measure))
    symbols = "\n(star: best; cross: diverged or never there)"
    figure, axes = _start(
        f"{MEASURES[measure].capitalize()} against {parameter}"
        f"{'' if points.empty else symbols}",
        subtitle, parameter, MEASURES[measure],
    )
    if points.empty:
        return _explain(figure, axes, NO_POINTS[measure])
    if logarithmic(table, parameter):
        axes.set_xscale("log")
    for index, (label, rows) in enumerate(points.groupby("label")):
        color = COLORS[index % len(COLORS)]
        inside = rows[np.isfinite(rows["median"])]
        edge = rows[np.isinf(rows["median"])]
        best = rows[rows["best"]]
        axes.plot(
            inside["value"], inside["y"], "o-", color=color, label=label
        )
        axes.fill_between(
            inside["value"], inside["low"], inside["high"], color=color,
            alpha=0.3, linewidth=0,
        )
        axes.plot(edge["value"], edge["y"], "x", color=color, markersize=5)
        axes.plot(
            best["value"], best["y"], "*", color=color, markersize=9,
            markeredgecolor="black", markeredgewidth=0.5,
        )
    return _finish(figure, axes)


def _speed(table, styles, subtitle):
    figure, axes = _start(
        "Speed against efficiency (grey: equal time)", subtitle,
        "steps to target", "ms per step",
    )
    for seconds, line in equal_times(table).groupby("seconds"):
        axes.plot(line["steps"], line["ms_per_step"], color="0.7", zorder=1)
        axes.annotate(
            f"{seconds:g} s", line[["steps", "ms_per_step"]].iloc[-1],
            color=GREY, fontsize=6, ha="center", va="center", bbox={
                "facecolor": "white", "edgecolor": "none", "pad": 0.3,
            },
        )
    for label, rows in table.groupby("label", sort=False):
        reached = rows[rows["reached"]]
        if len(reached):
            axes.plot(
                reached["steps_to_target"], reached["ms_per_step"],
                linestyle="", **styles[label],
                label=f"{label} ({len(reached)} of {len(rows)})",
            )
    return _finish(figure, axes)


def _start(title, subtitle, xlabel, ylabel):
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle("\n".join(
        textwrap.fill(line, 62)
        for line in f"{title}\n{subtitle}".splitlines()
    ))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _explain(figure, axes, words):
    """Write the reason into empty axes."""
    axes.text(
        0.5, 0.5, textwrap.fill(words, 40), ha="center", va="center",
        transform=axes.transAxes,
    )
    axes.set(xticks=[], yticks=[])
    return figure


def _finish(figure, axes):
    """Add the legend below the axes, and the height that it needs."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return _explain(figure, axes, "no run reached the target")
    columns = legend_columns(labels)
    rows = -(-len(labels) // columns)
    figure.set_figheight(HEIGHT + ROW * rows)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns,
        frameon=False, columnspacing=1, handlelength=1.5,
    )
    return figure


def legend_columns(labels):
    """Choose the number of a legend's columns: at most five that fit, filled
    evenly."""
    for columns in range(min(5, len(labels)), 1, -1):
        # A line of text holds about 74 characters, and a label's line and
        # marker take the space of six. matplotlib splits labels like this.
        parts = np.array_split(labels, columns)
        if sum(max(map(len, part)) + 6 for part in parts) <= 74:
            rows = -(-len(labels) // columns)
            return -(-len(labels) // rows)
    return 1
