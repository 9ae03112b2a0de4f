"""Steps saved against the baseline, in percent: the numbers of the forest
plot."""
import math

import pandas as pd

COLUMNS = ["label", "saved", "low", "high"]
# Characters of a title for the names of solvers that are not in the picture.
MAX_NAMES = 25


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
        0; ``low`` and ``high`` are nan where there is no interval. Empty if
        some seed of the baseline never got there: nothing is a share of what
        is not known.
    without : list of str
        Labels of solvers that have no ratio, because some seed never got
        there; all of them, the baseline first, where it was one of the
        baseline's.
    """
    table = verdict.summaries.set_index("label")
    if math.isnan(table.at[verdict.baseline, "mean"]):
        others = [label for label in table.index if label != verdict.baseline]
        return pd.DataFrame(columns=COLUMNS), [verdict.baseline, *others]
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
    return pd.DataFrame(rows, columns=COLUMNS), without


def title_of(baseline, saved, without):
    """The picture's title: what it shows, and which solvers are not in it
    because some seed never got there."""
    title = f"Steps saved against {baseline}"
    if saved.empty:
        return f"{title}: not all its seeds got there"
    if len(saved) == 1 and not without:
        return f"{title}: there is no other solver"
    title += ", 95 % intervals" if saved["low"].notna().any() else ""
    if without:
        names = ", ".join(without)
        if len(names) > MAX_NAMES:
            names = f"{len(without)} of the solvers"
        title += f"; no ratio: {names}"
    return title
