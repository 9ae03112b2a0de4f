"""Curves of the figures: losses, and the share of runs at the target.

``plots/`` and ``benchmark_utils/report/figures.py`` draw them.
"""
import numpy as np
import pandas as pd

from benchmark_utils.analysis.columns import SEED
from benchmark_utils.analysis.survival import survival

# An axis of the loss curves -> its column.
AXES = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
# A figure near the target shows this last part of the way from the untrained
# model's loss to the target.
ZOOM = 0.05


def highest_loss(evaluations, near_target=False):
    """Choose the upper end of the loss axis, in nats per token.

    A loss far above that of the untrained model would hide all others. Near
    the target, the axis shows the last 5 % of the way to it; if no run
    reached it, of the way to the median of the runs' lowest losses.
    """
    start = evaluations.loc[evaluations["step"] == 0, "val_loss"].max()
    if not near_target:
        return 1.2 * start
    lowest = evaluations.groupby(["label"] + SEED)["val_loss"].min()
    goal = evaluations["target"].iloc[0]
    if lowest.min() >= goal:
        goal = lowest.median()
    return goal + ZOOM * (start - goal)


def shows_target(evaluations, near_target=False):
    """Whether a figure shows the target: always for whole runs; near the
    target, if a run came about as close as the figure is high."""
    if not near_target:
        return True
    highest = highest_loss(evaluations, near_target)
    target = evaluations["target"].iloc[0]
    lowest = evaluations["val_loss"].min()
    return bool(lowest - target <= highest - lowest)


def in_order(curves, labels):
    """Pair labels with their curves, in the order of ``labels``; labels
    without a curve in the figure are left out."""
    groups = dict(iter(curves.groupby("label")))
    return [(label, groups[label]) for label in labels if label in groups]


def seed_curves(evaluations, axis, highest):
    """Compute one line per run.

    Parameters
    ----------
    evaluations : DataFrame
        See ``table.one_problem``.
    axis : {"steps", "tokens", "seconds"}
    highest : float
        Loss, in nats per token, above which lines are cut off.

    Returns
    -------
    curves : DataFrame
        ``label``, ``base_seed``, ``repetition``, ``x`` and ``val_loss``. A
        nan separates the parts of a line that leaves the figure and returns.
    """
    names = ["label"] + SEED
    return _one_frame([
        dict(zip(names, run, strict=True)) | _cut(
            rows[AXES[axis]].to_numpy(float),
            {"val_loss": rows["val_loss"].to_numpy(float)}, highest,
        )
        for run, rows in evaluations.groupby(names, sort=False)
    ])


def median_curves(evaluations, axis, highest):
    """Compute one line per solver: the median of its runs, and their range,
    on a common grid of steps.

    Runs are interpolated linearly between evaluations. A run that ended at
    the target counts as lower than those still training, one that diverged
    as higher, which is all that a median depends on. So the line continues
    until half of the runs have ended, and the band until the first has. From
    point to point, x grows by the mean advance of the runs still training,
    so it never decreases when a run ends.

    Parameters and ``x`` are those of ``seed_curves``.

    Returns
    -------
    curves : DataFrame
        ``label``, ``x``, ``val_loss``, ``low`` and ``high``; the last two are
        nan without a band.
    """
    curves = []
    for label, rows in evaluations.groupby("label", sort=False):
        grid = np.unique(rows["step"].to_numpy(float))
        run_losses, run_xs = [], []
        for _, run in rows.groupby(SEED):
            step = run["step"].to_numpy(float)
            last = run.iloc[-1]
            after = np.nan
            if last["diverged"]:
                after = np.inf
            elif last["stop_reason"] == "target":
                after = -np.inf
            run_losses.append(_interpolate(
                grid, step, run["val_loss"].to_numpy(float), after
            ))
            run_xs.append(_interpolate(
                grid, step, run[AXES[axis]].to_numpy(float), np.nan
            ))
        losses, xs = np.array(run_losses), np.array(run_xs)
        advance = np.nanmean(np.diff(xs, axis=1), axis=0)
        x = np.cumsum([xs[:, 0].mean(), *advance])
        with np.errstate(invalid="ignore"):
            # The mean of inf and -inf: half of the runs ended each way.
            median = np.median(losses, axis=0)
        low, high = losses.min(axis=0), losses.max(axis=0)
        band = np.isfinite(low) & np.isfinite(high) & (len(losses) > 1)
        end = _first(~np.isfinite(median))
        columns = {
            "val_loss": median, "low": np.where(band, low, np.nan),
            "high": np.where(band, high, np.nan),
        }
        curves.append({"label": label} | _cut(
            x[:end], {name: y[:end] for name, y in columns.items()}, highest
        ))
    return _one_frame(curves)


def _one_frame(curves):
    """Join curves, dicts of arrays of one length and of scalars, in a
    frame."""
    sizes = [len(curve["x"]) for curve in curves]
    return pd.DataFrame({
        name: np.concatenate([
            np.broadcast_to(curve[name], size)
            for curve, size in zip(curves, sizes, strict=True)
        ]) for name in curves[0]
    })


def _interpolate(grid, step, value, after):
    """Interpolate values at the grid's steps; ``after`` is the value beyond
    the last evaluation. An infinite value only counts at its own step."""
    index = np.searchsorted(step, grid)
    inside = index < len(step)
    exact = inside & (step[np.minimum(index, len(step) - 1)] == grid)
    with np.errstate(invalid="ignore"):
        between = np.interp(grid, step, value)
    found = np.where(exact, value[np.minimum(index, len(step) - 1)], between)
    return np.where(inside, found, after)


def _first(condition):
    """Position of the first True; None if there is none."""
    return int(np.argmax(condition)) if condition.any() else None


def _cut(x, columns, highest):
    """Cut a curve to its part below ``highest``, adding the points where it
    enters and leaves; it is nan outside.

    ``columns`` has the loss first; the others are clipped.
    """
    loss = next(iter(columns.values()))
    before, after = loss[:-1], loss[1:]
    crosses = np.flatnonzero(
        ((before <= highest) != (after <= highest))
        & np.isfinite(before) & np.isfinite(after)
    )
    share = (highest - before[crosses]) / (after - before)[crosses]
    entry = x[crosses] + share * (x[crosses + 1] - x[crosses])

    def insert(y):
        with np.errstate(invalid="ignore"):
            return np.insert(
                y, crosses + 1,
                y[crosses] + share * (y[crosses + 1] - y[crosses]),
            )
    columns = {"x": np.insert(x, crosses + 1, entry)} | {
        name: insert(y) for name, y in columns.items()
    }
    outside = columns["val_loss"] > highest * (1 + 1e-12)
    inside = np.flatnonzero(~outside)
    part = slice(inside[0], inside[-1] + 1) if inside.size else slice(0)
    cut = {name: np.where(outside, np.nan, y) for name, y in columns.items()}
    if "high" in cut:
        cut["high"] = np.minimum(cut["high"], highest)
    return {name: y[part] for name, y in (cut | {"x": columns["x"]}).items()}


def share_reached(runs):
    """Compute the Kaplan-Meier curve of steps to target.

    Parameters
    ----------
    runs : DataFrame
        See ``table.runs``.

    Returns
    -------
    curves : DataFrame
        Corners of the curves: ``label``, ``steps`` and ``share``, the share
        of runs that reached the target by this step. Runs that ended before
        they did leave the count where they ended.
    censored : DataFrame
        ``label``, ``steps`` and ``share``: the point on its solver's curve
        where a run ended without reaching the target.
    """
    curves, censored = [], []
    for label, rows in runs.groupby("label", sort=False):
        reached = rows["reached"].to_numpy()
        steps = rows["steps_to_target"].where(
            rows["reached"], rows["trained_to"]
        ).to_numpy(float)
        estimate = survival(steps, reached)
        share = 1 - estimate.share
        before = np.concatenate([[0.0], share[:-1]])
        curves.append(pd.DataFrame({
            "label": label,
            "steps": np.concatenate([[0.0], np.repeat(estimate.times, 2)]),
            "share": np.concatenate([
                [0.0], np.column_stack([before, share]).ravel()
            ]),
        }))
        ends = np.unique(steps[~reached])
        censored.append(pd.DataFrame({
            "label": label, "steps": ends,
            "share": share[np.searchsorted(estimate.times, ends)],
        }))
    return (
        pd.concat(curves, ignore_index=True),
        pd.concat(censored, ignore_index=True),
    )
