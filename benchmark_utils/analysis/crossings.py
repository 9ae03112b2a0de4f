"""Where a curve of losses crosses a target."""
import math


def first_crossing(losses, target):
    """Where a curve first falls below the target.

    Parameters
    ----------
    losses : sequence of float
        Validation losses of a run, in the order of its evaluations.
    target : float

    Returns
    -------
    crossing : (int, float) or None
        Index of the first evaluation below the target, and where the line to
        it from the evaluation before crosses the target, as a share of the
        way between the two. None if the curve stays above.
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
    """The value of a quantity where the loss crossed the target.

    Parameters
    ----------
    values : sequence of float
        Steps, tokens or seconds at the same evaluations.
    crossing : (int, float) or None
        From ``first_crossing``.

    Returns
    -------
    value : float
        Infinite for a run that never reached the target: it is censored, not
        missing.
    """
    if crossing is None:
        return math.inf
    index, share = crossing
    start, end = values[max(index - 1, 0)], values[index]
    return float(start + share * (end - start))
