"""Comparisons: one row per solver, and each solver against a baseline.

The choice of test depends on the design and on censoring, never on the
p-value: see docs/evidence.rst.
"""
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmark_utils.analysis import statistics, survival
from benchmark_utils.analysis.columns import SEED
from benchmark_utils.analysis.comparability import comparable_seconds
from benchmark_utils.analysis.statistics import Estimate
from benchmark_utils.analysis.table import ResultsError

NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan)
# The default baselines.
BASELINES = ["AdamW", "Adam"]
# Columns of the steps saved.
SAVED = ["label", "saved", "low", "high"]
# Characters of a title for the names of solvers that are not in the figure.
MAX_NAMES = 25


class Comparison(NamedTuple):
    """Comparison of a solver with the baseline.

    ``ratio`` and ``seconds`` are ratios of steps and of seconds to the target
    to those of the baseline, ``saved`` is the difference of mean steps up to
    ``until``, ``loss`` the difference of final losses at step ``loss_step``;
    each is nan if the data don't support it. ``p`` is the p-value of
    ``test``, ``adjusted_p`` the same after Holm's adjustment for all
    comparisons; ``sooner`` is whether the solver is faster.
    """
    label: str
    baseline: str
    n: int
    n_baseline: int
    pairs: int
    test: str = ""
    p: float = math.nan
    adjusted_p: float = math.nan
    sooner: bool = False
    ratio: Estimate = NOTHING
    seeds_needed: float = math.nan
    saved: Estimate = NOTHING
    until: float = math.nan
    seconds: Estimate = NOTHING
    loss: Estimate = NOTHING
    loss_step: float = math.nan
    loss_adjusted_p: float = math.nan


def summaries(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarize each solver in a row, the fastest first.

    Parameters
    ----------
    runs : DataFrame
        See ``table.runs``; those of one problem.

    Returns
    -------
    summaries : DataFrame
        ``label``, ``family``, ``n``, ``reached`` and ``diverged`` (numbers of
        seeds), ``horizon`` (steps); ``mean`` and ``sd`` of steps to target,
        nan if a seed is censored, ``median``, ``low`` and ``high`` by
        Kaplan-Meier; mean ``tokens`` and ``seconds`` to target, nan likewise;
        ``val_loss`` and ``val_loss_sd`` at the end of the runs,
        ``ms_per_step`` and ``peak_memory_mib``. An sd of one seed is nan.
    """
    rows = []
    for label, of_solver in runs.groupby("label", sort=False):
        all_reached = of_solver["reached"].all()
        # A mean of no runs is nan.
        complete = of_solver if all_reached else of_solver[:0]
        steps = complete["steps_to_target"]
        median = survival.median_to_target(*times_to_target(of_solver))
        rows.append({
            "label": label,
            "family": of_solver["family"].iloc[0],
            "n": len(of_solver),
            "reached": int(of_solver["reached"].sum()),
            "diverged": int(of_solver["diverged"].sum()),
            "horizon": int(of_solver["num_steps"].max()),
            "mean": steps.mean(), "sd": steps.std(),
            "median": median.value, "low": median.low, "high": median.high,
            "tokens": complete["tokens_to_target"].mean(),
            "seconds": complete["seconds_to_target"].mean(),
            "val_loss": of_solver["val_loss"].mean(),
            "val_loss_sd":
                of_solver["val_loss"].std()
                if np.isfinite(of_solver["val_loss"]).all() else math.nan,
            "ms_per_step": of_solver["ms_per_step"].mean(),
            "peak_memory_mib": of_solver["peak_memory_mib"].max(),
        })
    rows = pd.DataFrame(rows)
    # A solver that always reaches the target ranks above one that sometimes
    # does, however soon.
    order = pd.DataFrame({
        "missed": 1 - rows["reached"] / rows["n"],
        "steps": rows["mean"].fillna(rows["median"]),
        "val_loss": rows["val_loss"],
    }).sort_values(["missed", "steps", "val_loss"], kind="stable").index
    return rows.loc[order].reset_index(drop=True)


def times_to_target(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Give survival times: the steps that each run took to the target, or was
    trained for without reaching it, and which of the two it is (bool)."""
    reached = runs["reached"].to_numpy(dtype=bool)
    times = np.where(reached, runs["steps_to_target"], runs["trained_to"])
    return times.astype(float), reached


def choose_baseline(summaries: pd.DataFrame, name: str | None = None) -> str:
    """Choose the label of the baseline.

    ``name`` is a label, or a solver without parameters, which stands for its
    best setting; case is ignored. None is AdamW or Adam, or the first by name
    if neither is present.

    Raises
    ------
    ResultsError
        If there is no such solver.
    """
    labels, families = (
        summaries[column].str.casefold() for column in ("label", "family")
    )
    names = [name] if name is not None else BASELINES
    for wanted in map(str.casefold, names):
        for column in (labels, families):
            if (column == wanted).any():
                return summaries["label"][column == wanted].iloc[0]
    if name is not None:
        raise ResultsError(
            f"baseline {name!r} is not in the results: take one of "
            f"{', '.join(sorted(summaries['label']))}."
        )
    return min(summaries["label"], key=str.casefold)


def comparisons(
    runs: pd.DataFrame, order: Iterable[str], baseline: str
) -> dict[str, Comparison]:
    """Compare every other solver with the baseline, by label, in the order
    given. ``runs`` are those of one problem (see ``table.runs``)."""
    of = dict(iter(runs.groupby("label")))
    others = [label for label in order if label != baseline]
    found = [
        compare(of[label], of[baseline], len(others)) for label in others
    ]
    steps = statistics.holm([each.p for each in found])
    losses = statistics.holm([each.loss.p for each in found])
    return {
        each.label: each._replace(
            adjusted_p=float(p), loss_adjusted_p=float(loss_p)
        )
        for each, p, loss_p in zip(found, steps, losses, strict=True)
    }


def compare(a: pd.DataFrame, b: pd.DataFrame, among: int = 1) -> Comparison:
    """Compare the runs of one solver with those of the baseline.

    ``among`` is the number of comparisons, for which ``seeds_needed`` is
    corrected by Bonferroni's rule.
    """
    paired_a, paired_b, paired = _by_seed(a, b)
    result = Comparison(
        a["label"].iloc[0], b["label"].iloc[0], len(a), len(b),
        len(paired_a) if paired else 0,
    )
    result = _compare_losses(result, a, b, paired_a, paired_b, paired)
    if a["reached"].all() and b["reached"].all():
        return _compare_times(
            result, a, b, paired_a, paired_b, paired, among
        )
    return _compare_censored(result, a, b, paired_a, paired_b, paired)


def steps_saved(verdict) -> tuple[pd.DataFrame, list[str]]:
    """Compute the steps saved in a ``Verdict`` against its baseline.

    Returns
    -------
    saved : DataFrame
        ``label``, ``saved``, ``low`` and ``high`` (percent; negative if more
        steps are needed), the fastest first. The baseline has 0; ``low`` and
        ``high`` are nan without an interval. Empty if a seed of the baseline
        missed the target: a share of an unknown number is unknown.
    without : list of str
        Labels of solvers without a ratio, because a seed missed the target;
        all labels, the baseline first, if it was a seed of the baseline.
    """
    table = verdict.summaries.set_index("label")
    if math.isnan(table.at[verdict.baseline, "mean"]):
        others = [label for label in table.index if label != verdict.baseline]
        return pd.DataFrame(columns=SAVED), [verdict.baseline, *others]
    rows, without = [], []
    for label in table.index:
        if label == verdict.baseline:
            rows.append((label, 0.0, math.nan, math.nan))
            continue
        ratio = verdict.comparisons[label].ratio
        if math.isnan(ratio.value):
            without.append(label)
        else:
            # The upper end of a ratio is the lower end of what is saved.
            rows.append((label, *(
                100 * (1 - end)
                for end in (ratio.value, ratio.high, ratio.low)
            )))
    return pd.DataFrame(rows, columns=SAVED), without


def title_of(baseline, saved, without):
    """Title a figure of steps saved: what it shows, and which solvers are not
    in it because a seed missed the target."""
    title = f"Steps saved against {baseline}"
    if saved.empty:
        return f"{title}: some of its seeds missed the target"
    if len(saved) == 1 and not without:
        return f"{title}: there is no other solver"
    title += ", 95 % intervals" if saved["low"].notna().any() else ""
    if without:
        names = ", ".join(without)
        if len(names) > MAX_NAMES:
            names = f"{len(without)} of the solvers"
        title += f"; no ratio: {names}"
    return title


def _by_seed(a, b):
    """Pair two solvers' runs seed by seed, if one has all seeds of the other.
    Return both, and whether they are paired."""
    a, b = a.set_index(SEED), b.set_index(SEED)
    shared = a.index.intersection(b.index)
    if len(shared) == min(len(a), len(b)):
        return a.loc[shared], b.loc[shared], True
    return a, b, False


def _enough(*samples):
    """Whether there are three seeds: two give one degree of freedom."""
    return min(map(len, samples)) >= 3


def _compare_times(result, a, b, paired_a, paired_b, paired, among):
    """Compare solvers that always reach the target: t-tests of logarithms."""
    def ratio(column):
        estimate = statistics.ratio(paired_a[column], paired_b[column], paired)
        if _enough(paired_a, paired_b):
            return estimate
        return NOTHING._replace(value=estimate.value)

    steps = ratio("steps_to_target")
    result = result._replace(ratio=steps, sooner=steps.value < 1)
    if not comparable_seconds(pd.concat([a, b])):
        result = result._replace(seconds=ratio("seconds_to_target"))
    if math.isnan(steps.p):
        return result
    logs = [
        np.log(rows["steps_to_target"].to_numpy())
        for rows in (paired_a, paired_b)
    ]
    sd = (
        np.std(logs[0] - logs[1], ddof=1) if paired else
        math.sqrt(np.mean([np.var(values, ddof=1) for values in logs]))
    )
    return result._replace(
        test="paired t" if paired else "Welch's t", p=steps.p,
        seeds_needed=statistics.seeds_needed(
            math.log(steps.value), sd, paired, statistics.ALPHA / among
        ),
    )


def _compare_censored(result, a, b, paired_a, paired_b, paired):
    """Compare solvers with censored seeds: a log-rank test, and means up to
    the smaller horizon if both reached the target at all."""
    test = survival.logrank(*times_to_target(a), *times_to_target(b))
    if not math.isnan(test.p):
        result = result._replace(
            test="permuted log-rank" if test.exact else "log-rank", p=test.p
        )
    result = result._replace(sooner=test.z > 0)
    both = pd.concat([a, b])
    until = float(min(
        both["num_steps"].min(), both["trained_to"][~both["reached"]].min()
    ))
    some = [(rows["steps_to_target"] <= until).any() for rows in (a, b)]
    if not (all(some) and _enough(paired_a, paired_b)):
        return result
    return result._replace(until=until, saved=survival.restricted_difference(
        paired_a["steps_to_target"], paired_b["steps_to_target"], until,
        paired,
    ))


def _compare_losses(result, a, b, paired_a, paired_b, paired):
    """Compare final losses, if all seeds were trained to one horizon."""
    both = pd.concat([a, b])
    steps = both["step"].unique()
    if (
        len(steps) > 1 or (both["step"] != both["num_steps"]).any()
        or both["diverged"].any()
    ):
        return result
    loss = statistics.difference(
        paired_a["val_loss"], paired_b["val_loss"], paired
    )
    if not _enough(paired_a, paired_b):
        loss = NOTHING._replace(value=loss.value)
    return result._replace(loss=loss, loss_step=float(steps[0]))
