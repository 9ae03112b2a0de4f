"""Statistics of few seeds: intervals, tests, and the number of seeds needed.

survival.py covers seeds that miss the target. tests/test_statistics.py
simulates the coverage of these functions with 3, 5 and 10 seeds, and
docs/evidence.rst has the rules that follow.
"""
import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 0.05
# Differences below this, relative to what is compared, are rounding errors.
TOLERANCE = 1e-9


class Estimate(NamedTuple):
    """An estimate, its 95 % interval and the p-value of no effect.

    Fields that the data don't support are nan, such as the interval of one
    seed, or the p-value of differences without spread.
    """
    value: float
    low: float
    high: float
    p: float


class TrackRule(NamedTuple):
    """The public track's rule, and a t-test of the same claim."""
    statistic: float
    passes: bool
    p: float


def difference(a, b, paired):
    """Estimate the mean difference ``a - b`` by a paired or Welch's t-test.

    Parameters
    ----------
    a, b : arrays of shape (..., n), or (..., n_a) and (..., n_b) if unpaired
        Finite values. Tests run along the last axis.
    paired : bool
        Whether the values at one position share initialisation and data.

    Returns
    -------
    Estimate
        Only the value for one seed, or if the differences have no spread: a
        t-test would divide by zero, and any shift would be certain.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    value = a.mean(-1) - b.mean(-1)
    nothing = np.full_like(value, math.nan)
    if min(a.shape[-1], b.shape[-1]) < 2:
        return Estimate(*_scalars(value, nothing, nothing, nothing))
    # If there is no spread, rounding leaves one of about 1e-16. scipy warns of
    # it; the result is withheld below.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if paired:
            test = stats.ttest_rel(a, b, axis=-1)
            spread = np.std(a - b, axis=-1)
        else:
            test = stats.ttest_ind(a, b, axis=-1, equal_var=False)
            spread = np.hypot(np.std(a, axis=-1), np.std(b, axis=-1))
        interval = test.confidence_interval(LEVEL)
    scale = np.maximum(np.abs(a).max(-1), np.abs(b).max(-1))
    defined = spread > TOLERANCE * scale
    return Estimate(*_scalars(
        value, *(
            np.where(defined, array, math.nan)
            for array in (interval.low, interval.high, test.pvalue)
        )
    ))


def ratio(a, b, paired):
    """Estimate the ratio of ``a`` to ``b`` by the ``difference`` of
    logarithms, so that it is a ratio of geometric means.

    The paired interval holds the true ratio in .95 of samples of 3, 5 and 10
    seeds; a bootstrap of paired means in .67, .84 and .90.

    Parameters
    ----------
    a, b, paired
        See ``difference``; above 0.

    Returns
    -------
    Estimate
    """
    value, low, high, p = difference(np.log(a), np.log(b), paired)
    return Estimate(*_scalars(np.exp(value), np.exp(low), np.exp(high), p))


def holm(p_values):
    """Adjust p-values for their number by Holm's method [1]_.

    Parameters
    ----------
    p_values : sequence of float
        nan if there was no test, which doesn't count.

    Returns
    -------
    adjusted : array of shape (m,)

    .. [1] Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)[:np.isfinite(p_values).sum()]
    adjusted = np.full(len(p_values), math.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(
        np.maximum.accumulate(p_values[order] * factors), 1
    )
    return adjusted


def smallest_p(n_a, n_b, paired):
    """Return the smallest two-sided p-value of an exact rank or permutation
    test: of sign flips if paired, else of splits. It is .1 for three seeds
    against three, .25 for three pairs."""
    if paired:
        return min(1.0, 2 / 2**n_a)
    sides = 2 if n_a == n_b else 1
    return min(1.0, sides / math.comb(n_a + n_b, n_a))


def track_rule(losses, target=3.28):
    """Apply the rule of modded-nanogpt's optimization track, (target - mean)
    * sqrt(n) >= 0.004 [1]_, and a one-sided t-test that the mean is below.

    The rule assumes a spread of seeds of 0.0013, which holds for Muon and
    its variants; AdamW's is 0.0027 and Lion's 0.0064.

    Parameters
    ----------
    losses : array of shape (n,)
        Losses of all seeds at one step, chosen before training.

    Returns
    -------
    TrackRule
        ``p`` is nan for one seed.

    .. [1] github.com/KellerJordan/modded-nanogpt,
       records/track_3_optimization.
    """
    losses = np.asarray(losses, dtype=float)
    statistic = (target - losses.mean()) * math.sqrt(len(losses))
    p = math.nan
    if len(losses) > 1 and np.ptp(losses) > 0:
        p = stats.ttest_1samp(losses, target, alternative="less").pvalue
    return TrackRule(
        float(statistic), bool(statistic >= 0.004 - TOLERANCE), float(p)
    )


def power(effect, sd, n, paired, alpha=ALPHA):
    """Compute the power of a t-test.

    Parameters
    ----------
    effect : float
        True difference of the means.
    sd : float
        Standard deviation of the differences if paired, else of one sample.
    n : int
        Pairs, or seeds in each of two samples.
    alpha : float
        The p-value below which an effect is detected.
    """
    freedom = n - 1 if paired else 2 * (n - 1)
    shift = abs(effect) / sd * math.sqrt(n if paired else n / 2)
    limit = stats.t.isf(alpha / 2, freedom)
    return float(
        stats.nct.sf(limit, freedom, shift)
        + stats.nct.cdf(-limit, freedom, shift)
    )


def seeds_needed(effect, sd, paired, alpha=ALPHA, wanted=0.8, at_most=1000):
    """Plan the number of seeds per method for a power of .8. Effect and
    spread are guesses from few seeds.

    Parameters
    ----------
    effect, sd, paired, alpha
        See ``power``.

    Returns
    -------
    n : int or None
        At least 2; None if more than ``at_most``.
    """
    if not sd > 0:
        return 2
    for n in range(2, at_most + 1):
        if power(effect, sd, n, paired, alpha) >= wanted:
            return n
    return None


def _scalars(*arrays):
    """Turn arrays without dimensions into floats."""
    return [
        float(array) if np.ndim(array) == 0 else array for array in arrays
    ]
