"""What a run that went wrong says of itself."""


def describe_failure(curve):
    """Sentences about a run that trains nothing, or nothing good.

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
            "trains nothing: each of its weights is what it was. Is a "
            "learning rate 0, or too small?"
        )
    if first["target_reached"]:
        yield (
            f"needs no training: its loss of {initial:.4g} at step 0 is below "
            f"the target of {first['target']:.4g}."
        )
