"""Where a curve of losses crosses a target."""
import math


def first_crossing(losses, target):
    """Where a curve first falls below the target.

    Parameters
    ----------
    losses : sequence of float
        Of a run's evaluations, in their order.
    target : float

    Returns
    -------
    (index, share) : the first evaluation below the target, and the share of
        the way to it from the one before at which the line between the two
        crosses; None if the curve stays above.
    """
    for index, loss in enumerate(losses):
        if loss < target:
            if index == 0:
                return 0, 1.0
            before = losses[index - 1]
            if math.isinf(before):
                return index, 1.0
            return index, (before - target) / (before - loss)
    return None


def interpolate(values, crossing):
    """What a quantity was when its curve crossed.

    Parameters
    ----------
    values : sequence of float
        Steps, tokens or seconds at the same evaluations.
    crossing : (int, float) or None
        From ``first_crossing``.

    Returns
    -------
    value : float
        Infinite for a run that never got there: it is censored, not missing.
    """
    if crossing is None:
        return math.inf
    index, share = crossing
    start, end = values[max(index - 1, 0)], values[index]
    return float(start + share * (end - start))
