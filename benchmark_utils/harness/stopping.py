"""Stopping criterion, and columns that describe how a run ended."""
from benchopt.stopping_criterion import StoppingCriterion

from benchmark_utils.analysis.crossings import first_crossing, interpolate
from benchmark_utils.analysis.failures import describe_failure
from benchmark_utils.console.progress import log
from benchmark_utils.console.run_summary import add_problem


class TargetCriterion(StoppingCriterion):
    """Stop at the target, at the end of the horizon, or on divergence.

    There is no patience: a loss that rises for a while, as on the plateau
    before a cool-down, never ends a run. benchopt's own check for divergence
    is off (it has no key to monitor) because it discards the curve.

    Evaluations are completed here because this is the only place that sees
    both losses and benchopt's clock, and whether a limit of benchopt's ends
    the run.
    """

    def get_runner_instance(self, max_runs=1, timeout=None, terminal=None,
                            solver=None, run_key=None):
        for warning in describe_limits(
            solver.name, len(solver.evaluations), max_runs, timeout
        ):
            log(f"WARNING: {warning}")
        if solver.world.rank:
            # Rank 0's clock decides.
            timeout = None
        return super().get_runner_instance(
            max_runs=max_runs, timeout=timeout, solver=solver,
            # Without a terminal, benchopt does not print its own line for
            # every evaluation (console/progress.py prints one).
            terminal=None, run_key=run_key,
        )

    def should_stop(self, stop_val, objective_list):
        stop, status, next_stop_val = super().should_stop(
            stop_val, objective_list
        )
        last = objective_list[-1]
        last["objective_tokens_per_second"] = tokens_per_second(
            objective_list
        )
        world = self.solver.world
        stop = not world.agree(not stop)
        if world.rank:
            # Only rank 0 keeps results and files: benchopt keeps nothing of a
            # run that was interrupted.
            return stop, "interrupted" if stop else status, next_stop_val
        if self.solver.progress:
            self.solver.progress.evaluated(objective_list)
        known = set(describe_failure(objective_list[:-1]))
        if stop:
            complete_curve(objective_list, stop_reason(last) or status)
        for sentence in describe_failure(objective_list):
            if sentence not in known:
                log(f"WARNING: {self.solver.name} {sentence}")
                add_problem(self.solver, sentence)
        return stop, status, next_stop_val

    def check_convergence(self, objective_list):
        last = objective_list[-1]
        progress = last["objective_step"] / last["objective_num_steps"]
        return stop_reason(last) is not None, float(progress)


def describe_limits(name, num_evaluations, max_runs, timeout):
    """Yield warnings about benchopt's limits that can end a run early."""
    if timeout is not None:
        yield (
            f"{name} stops at the first evaluation after {timeout:g} s, "
            "evaluations included (benchopt's --timeout, 100 s unless given)."
            " Pass --no-timeout to train to the end."
        )
    if max_runs < num_evaluations - 1:
        yield (
            f"{name} stops after {max_runs + 1} of its {num_evaluations} "
            "evaluations (benchopt's --max-runs). Pass --max-runs 100000 to "
            "train to the end."
        )


def stop_reason(row):
    """Return why a run ends after this evaluation: "diverged", "target" or
    "horizon"; None if it continues."""
    if row["objective_diverged"]:
        return "diverged"
    if row["objective_target_reached"] and row["objective_stop_at_target"]:
        return "target"
    if row["objective_step"] >= row["objective_num_steps"]:
        return "horizon"
    return None


def tokens_per_second(curve):
    """Return the speed since the previous evaluation; 0 at the first."""
    if len(curve) < 2:
        return 0.0
    before, last = curve[-2:]
    seconds = last["time"] - before["time"]
    return (last["objective_tokens"] - before["objective_tokens"]) / seconds


def complete_curve(curve, reason):
    """Add what is known after the run's end to each of its evaluations.

    ``objective_stop_reason`` is "target", "horizon", "diverged", "timeout" or
    "max_runs". ``objective_{steps,tokens,seconds}_to_target`` are
    interpolated linearly between the two evaluations around the first
    crossing of the target; infinite for a run that never got there.

    Parameters
    ----------
    curve : list of dict
        Evaluations of one run, in order.
    reason : str
    """
    crossing = first_crossing(
        [row["objective_value"] for row in curve],
        curve[-1]["objective_target"],
    )
    facts = {"objective_stop_reason": reason} | {
        f"objective_{quantity}_to_target": interpolate(
            [row[key] for row in curve], crossing
        )
        for quantity, key in [
            ("steps", "objective_step"), ("tokens", "objective_tokens"),
            ("seconds", "time"),
        ]
    }
    for row in curve:
        row.update(facts)
