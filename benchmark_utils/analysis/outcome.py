"""The outcome of a run: the step at which it reaches the target, and
diagnostics of a run that went wrong."""
import math


def first_crossing(losses, target):
    """Find where a curve first falls below the target.

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
    """Interpolate a quantity to where the loss crosses the target.

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


def diagnostics(curve):
    """Yield sentences about a run that trains nothing, or diverges.

    Parameters
    ----------
    curve : list of dict
        What was measured at the evaluations of one run, in their order (see
        ``columns.measured``): those so far, or all, with ``stop_reason``.

    Yields
    ------
    sentence : str
        Its subject is the run.
    """
    if not curve:
        return
    first, last = curve[0], curve[-1]
    initial, loss = first["val_loss"], last["val_loss"]
    if last["diverged"]:
        yield (
            f"diverged: at step {last['step']} of "
            f"{last['num_steps']} its loss is not finite."
        )
    elif "stop_reason" in last and loss > initial:
        yield (
            f"ends at a loss of {loss:.4g}, above the {initial:.4g} of step "
            "0. Is a learning rate too large?"
        )
    if len(curve) > 1 and not last["weights_moved"]:
        yield (
            "trains nothing: no weight has changed. Is a learning rate 0, or "
            "too small?"
        )
    if first["target_reached"]:
        yield (
            f"needs no training: its loss of {initial:.4g} at step 0 is below "
            f"the target of {first['target']:.4g}."
        )
