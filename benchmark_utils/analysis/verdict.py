"""Verdicts in words: what the results support, and no more.

Two solvers differ if the p-value, adjusted for the number of comparisons, is
below .05. Otherwise they are "not distinguishable", which never means equal.
"""
import math
from typing import NamedTuple

import pandas as pd

from benchmark_utils.analysis import comparability, comparison, statistics
from benchmark_utils.analysis.statistics import ALPHA
from benchmark_utils.analysis.text import (
    change,
    change_interval,
    fewer_or_more,
    losses_of,
    p_value,
    reached_by,
    than,
    times_of,
)

# The target of the public track, whose rule is shown next to a t-test.
TRACK_TARGET = 3.28


class Verdict(NamedTuple):
    """The verdict on one problem.

    ``summaries`` has a row per solver, the fastest first; ``comparisons``
    maps the labels of all but the baseline to their ``Comparison``, in that
    order. ``sentences`` has a paragraph for each of them. ``notes`` qualify
    them: limits of the tests, differences in horizons and machines, seeds
    that diverged.
    """
    dataset: str
    objective: str
    target: float
    baseline: str
    summaries: pd.DataFrame
    comparisons: dict[str, comparison.Comparison]
    sentences: list[str]
    notes: list[str]


def verdict(runs: pd.DataFrame, baseline: str | None = None) -> Verdict:
    """Compare the solvers of one problem (see ``table.runs``) with a baseline
    (see ``comparison.choose_baseline``, which may raise ResultsError)."""
    summaries = comparison.summaries(runs)
    baseline = comparison.choose_baseline(summaries, baseline)
    found = comparison.comparisons(runs, summaries["label"], baseline)
    of = dict(iter(runs.groupby("label")))
    sentences = [
        " ".join(filter(None, [
            _about_steps(each, of[label], of[baseline]),
            _about_seconds(each),
            _about_losses(each, of[label], of[baseline]),
        ]))
        for label, each in found.items()
    ]
    if not found:
        sentences = [
            f"{times_of(runs)}. There is no other solver to compare with."
        ]
    first = runs.iloc[0]
    return Verdict(
        first["dataset"], first["objective"], float(first["target"]),
        baseline, summaries, found, sentences + _about_the_track(runs),
        _notes(found.values(), runs),
    )


def _about_steps(c, a, b):
    target = f"{a['target'].iloc[0]:.4g}"
    few = {1: " With one seed", 2: " With two seeds"}.get(
        min(c.n, c.n_baseline), ""
    )
    if few:
        few += " there is no verdict: train three or more."
    if not (a["reached"].any() or b["reached"].any()):
        return (
            f"Neither {c.label} nor {c.baseline} reaches {target} "
            f"({reached_by(a, b)}), so steps to it cannot be compared.{few}"
        )
    if few:
        return f"{times_of(a)}; {times_of(b)}.{few}"
    if not (a["reached"].all() and b["reached"].all()):
        return _censored(c, a, b, target)
    if math.isnan(c.p):
        return (
            f"{times_of(a)}; {times_of(b)}. The differences have no spread, "
            "so there is no test."
        )
    detail = f"{reached_by(a, b)}, {_test(c)}"
    if c.adjusted_p < ALPHA:
        apart = ""
        if c.n == c.n_baseline == 3 and _apart(a, b):
            apart = " The seeds of the two do not overlap."
        return (
            f"{c.label} reaches {target} in {change(c.ratio.value)} steps "
            f"{than(c.ratio.value)} {c.baseline} ({change_interval(c.ratio)}"
            f"; {detail}).{apart}"
        )
    return (
        f"{c.label} and {c.baseline} are not distinguishable: {c.label} takes "
        f"{change(c.ratio.value)} steps ({change_interval(c.ratio)}; "
        f"{detail}). {_plan(c)}"
    )


def _censored(c, a, b, target):
    counts = reached_by(a, b)
    if math.isnan(c.p):
        floor = statistics.smallest_p(c.n, c.n_baseline, paired=False)
        text = (
            f"{c.label} and {c.baseline}: {counts}. Too few seeds to test "
            f"(smallest possible p: {floor:.2g})."
        )
    elif c.adjusted_p < ALPHA:
        text = (
            f"{c.label} reaches {target} {'sooner' if c.sooner else 'later'} "
            f"than {c.baseline} ({counts}; {_test(c)})."
        )
    else:
        text = (
            f"{c.label} and {c.baseline} are not distinguishable ({counts}; "
            f"{_test(c)})."
        )
    if math.isnan(c.saved.low):
        return text
    rough = ""
    missed = [
        (rows["steps_to_target"] > c.until).mean() for rows in (a, b)
    ]
    if max(missed) >= 0.5:
        rough = ", a rough interval where half the seeds are censored"
    return (
        f"{text} Within the first {c.until:.0f} steps, {c.label} needs on "
        f"average {fewer_or_more(c.saved.value)} (95 % CI {c.saved.low:.3g} "
        f"to {c.saved.high:.3g}{rough})."
    )


def _about_seconds(c):
    if math.isnan(c.seconds.low):
        return ""
    return (
        f"In seconds: {change(c.seconds.value)} "
        f"({change_interval(c.seconds)})."
    )


def _about_losses(c, a, b):
    if math.isnan(c.loss_step):
        if a["reached"].any() or b["reached"].any():
            return ""
        return (
            "Final losses are not compared: that needs runs that train to "
            "the same horizon and do not diverge."
        )
    if math.isnan(c.loss.p):
        return (
            f"Loss at step {c.loss_step:.0f}: {losses_of(a)}; {losses_of(b)}."
        )
    size = (
        f"{abs(c.loss.value):.2g} {'below' if c.loss.value < 0 else 'above'}"
    )
    detail = (
        f"95 % CI {c.loss.low:+.2g} to {c.loss.high:+.2g}; "
        f"{'paired t' if c.pairs else 'Welch t'}, "
        f"p = {p_value(c.loss_adjusted_p)}"
    )
    if c.loss_adjusted_p < ALPHA:
        return (
            f"At step {c.loss_step:.0f} the loss of {c.label} is {size} that "
            f"of {c.baseline} ({detail})."
        )
    return (
        f"At step {c.loss_step:.0f} their losses are not distinguishable "
        f"({c.label} {size}, {detail})."
    )


def _about_the_track(runs):
    """Apply the public track's rule to solvers whose seeds all ended at one
    step that was fixed in advance: their horizon."""
    if not math.isclose(runs["target"].iloc[0], TRACK_TARGET):
        return []
    found = []
    for label, rows in runs.groupby("label", sort=False):
        if rows["step"].nunique() > 1 or rows["diverged"].any() or (
            rows["step"] != rows["num_steps"]
        ).any():
            continue
        rule = statistics.track_rule(rows["val_loss"], TRACK_TARGET)
        test = (
            "one seed has no t-test" if math.isnan(rule.p)
            else f"t-test of a mean below 3.28: p = {p_value(rule.p)}"
        )
        found.append(
            f"{label}, public track's rule at step {rows['step'].iloc[0]}: "
            f"(3.28 - mean) * sqrt(n) = {rule.statistic:.4f}, which "
            f"{'passes' if rule.passes else 'does not pass'} 0.004 "
            f"(n = {len(rows)}; {test})."
        )
    return found


def _notes(found, runs):
    notes = []
    tests = [c for c in found if not math.isnan(c.p)]
    if len(tests) > 1:
        notes.append(
            f"p-values are adjusted for {len(tests)} comparisons (Holm); "
            "intervals are not."
        )
    t_tests = [c for c in tests if c.test.endswith("t")]
    if t_tests:
        notes.append(
            "t-tests compare logarithms of steps and assume normal "
            "differences."
        )
    if any(c.n == c.n_baseline == 3 for c in t_tests):
        notes.append(
            "Three seeds: rank and permutation tests, which do not assume "
            "normality, cannot reach .05 (.25 paired, .1 unpaired)."
        )
    if not all(math.isnan(c.seconds.low) for c in found):
        notes.append(
            "Timings come from one machine and include interference from "
            "other processes."
        )
    notes += comparability.warnings(runs)
    if runs["label"].nunique() > 1:
        notes.append(
            "The results do not record how carefully each solver was tuned: "
            "report each one's tuning budget."
        )
    return notes


def _plan(c):
    if c.seeds_needed is None:
        return (
            "More than 1000 seeds each would be needed to show a difference "
            "of this size."
        )
    return (
        f"About {c.seeds_needed:.0f} seeds each would be needed to show a "
        "difference of this size (power .8)."
    )


def _test(c):
    if c.test == "paired t" and c.pairs < max(c.n, c.n_baseline):
        test = f"paired t of the {c.pairs} seeds they share"
    else:
        test = c.test
    return f"{test}, p = {p_value(c.adjusted_p)}"


def _apart(a, b):
    a, b = a["steps_to_target"], b["steps_to_target"]
    return a.max() < b.min() or b.max() < a.min()
