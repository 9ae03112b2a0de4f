"""Steps saved against the baseline, in percent: the numbers of the forest
plot."""
import math

import pandas as pd


def steps_saved(verdict):
    """How many percent fewer steps to the target than the baseline's.

    Parameters
    ----------
    verdict : Verdict
        See ``verdict.verdict``.

    Returns
    -------
    saved : DataFrame
        ``label``, ``saved``, ``low`` and ``high`` (percent; negative where
        more steps are needed), the fastest first. The baseline is there with
        0; ``low`` and ``high`` are nan where there is no interval.
    without : list of str
        Labels of solvers that have no ratio, because some seed, or one of the
        baseline's, never got there.
    """
    rows, without = [], []
    for label in verdict.summaries["label"]:
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
    return pd.DataFrame(
        rows, columns=["label", "saved", "low", "high"]
    ), without


def about_the_missing(without):
    """A line that names solvers without a ratio; empty if there are none."""
    if not without:
        return ""
    names = ", ".join(without[:3])
    if len(without) > 3:
        names += f" and {len(without) - 3} more"
    return f"no ratio, some seed never got there: {names}"
