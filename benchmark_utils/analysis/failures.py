"""What a run that went wrong says of itself."""


def describe_failure(curve):
    """Sentences about a run that trains nothing, or nothing good.

    Parameters
    ----------
    curve : list of dict
        benchopt's rows of one run, in the order of its evaluations; as far as
        it has come, or as a whole, with ``objective_stop_reason``.

    Yields
    ------
    sentence : str
        Its subject is the run.
    """
    if not curve:
        return
    first, last = curve[0], curve[-1]
    initial, loss = first["objective_value"], last["objective_value"]
    if last["objective_diverged"]:
        yield (
            f"diverged: at step {last['objective_step']} of "
            f"{last['objective_num_steps']} its loss is not finite."
        )
    elif "objective_stop_reason" in last and loss > initial:
        yield (
            f"ends at a loss of {loss:.4g}, above the {initial:.4g} of step "
            "0. Is a learning rate too large?"
        )
    if len(curve) > 1 and not last["objective_weights_moved"]:
        yield (
            "trains nothing: each of its weights is what it was. Is a "
            "learning rate 0, or too small?"
        )
    if first["objective_target_reached"]:
        yield (
            f"needs no training: its loss of {initial:.4g} at step 0 is below "
            f"the target of {first['objective_target']:.4g}."
        )
