"""When a run stops, and what the results say about it."""
from benchopt.stopping_criterion import StoppingCriterion


class TargetCriterion(StoppingCriterion):
    """Stop at the target, at the end of the horizon, or on divergence.

    There is no patience: a loss that rises for a while, as on the plateau
    before a cool-down, never ends a run. benchopt's own check for divergence
    is off (no ``key_to_monitor``) because it throws the curve away.

    The criterion is the one place that sees losses and benchopt's clock side
    by side, so it also completes the rows of the results: see
    ``complete_curve``.
    """

    def __init__(self, strategy=None, key_to_monitor=None, minimize=True):
        super().__init__(
            strategy=strategy, key_to_monitor=key_to_monitor,
            minimize=minimize,
        )

    def get_runner_instance(self, max_runs=1, timeout=None, terminal=None,
                            solver=None, run_key=None):
        criterion = super().get_runner_instance(
            max_runs=max_runs, timeout=timeout, terminal=terminal,
            solver=solver, run_key=run_key,
        )
        for warning in solver.describe_limits(max_runs, timeout):
            print(f"\nWARNING: {warning}")
        return criterion

    def should_stop(self, stop_val, objective_list):
        stop, status, next_stop_val = super().should_stop(
            stop_val, objective_list
        )
        last = objective_list[-1]
        last["objective_tokens_per_second"] = tokens_per_second(
            objective_list
        )
        if stop:
            reason = stop_reason(last) or status
            complete_curve(objective_list, reason)
        return stop, status, next_stop_val

    def check_convergence(self, objective_list):
        last = objective_list[-1]
        progress = last["objective_step"] / last["objective_num_steps"]
        return stop_reason(last) is not None, float(progress)


def stop_reason(row):
    """Why a run ends after this evaluation: "diverged", "target" or
    "horizon"; None if it goes on."""
    if row["objective_diverged"]:
        return "diverged"
    if row["objective_target_reached"]:
        return "target"
    if row["objective_step"] >= row["objective_num_steps"]:
        return "horizon"
    return None


def tokens_per_second(curve):
    """Training speed since the previous evaluation; 0 at the first."""
    if len(curve) < 2:
        return 0.0
    before, last = curve[-2:]
    seconds = last["time"] - before["time"]
    return (last["objective_tokens"] - before["objective_tokens"]) / seconds


def complete_curve(curve, reason):
    """Add to every row what is known of the run once it has ended.

    ``objective_stop_reason`` is "target", "horizon", "diverged", "timeout" or
    "max_runs". ``objective_{steps,tokens,seconds}_to_target`` are
    interpolated linearly between the two evaluations around the first
    crossing of the target; infinite for a run that never got there, which is
    then censored and not missing.
    """
    crossing = first_crossing(
        [row["objective_value"] for row in curve],
        curve[-1]["objective_target"],
    )
    for column, key in [
        ("steps", "objective_step"), ("tokens", "objective_tokens"),
        ("seconds", "time"),
    ]:
        value = float("inf")
        if crossing is not None:
            index, share = crossing
            end = curve[index][key]
            start = curve[max(index - 1, 0)][key]
            value = float(start + share * (end - start))
        for row in curve:
            row[f"objective_{column}_to_target"] = value
    for row in curve:
        row["objective_stop_reason"] = reason


def first_crossing(losses, target):
    """Where a curve first falls below the target.

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
            if before == float("inf"):
                return index, 1.0
            return index, (before - target) / (before - loss)
    return None
