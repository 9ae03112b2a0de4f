"""Stopping criterion: when a run ends, and how its results record it."""
from benchopt.stopping_criterion import StoppingCriterion

from benchmark_utils.analysis.columns import add_to_row, measured
from benchmark_utils.analysis.outcome import (
    diagnostics,
    first_crossing,
    interpolate,
)
from benchmark_utils.console.progress import log
from benchmark_utils.console.run_summary import add_problem


class TargetCriterion(StoppingCriterion):
    """Stop at the target, at the end of the horizon, or on divergence.

    There is no patience: a loss that rises for a while, as on the plateau
    before a cool-down, never ends a run. benchopt's own check for divergence
    is off (there is no key to monitor) because it discards the curve.

    The rows of the results are completed here because only a stopping
    criterion has both losses and benchopt's clock, and knows whether a limit
    of benchopt ended the run.
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
            # Without a terminal, benchopt prints no progress of its own,
            # which would repeat every line of progress.py.
            terminal=None, run_key=run_key,
        )

    def should_stop(self, stop_val, rows):
        stop, status, next_stop_val = super().should_stop(stop_val, rows)
        speed = tokens_per_second([measured(row) for row in rows])
        add_to_row(rows[-1], {"tokens_per_second": speed})
        curve = [measured(row) for row in rows]
        world = self.solver.world
        stop = not world.agree(not stop)
        if world.rank:
            # Rank 0 writes the results and files. benchopt discards the
            # results of an interrupted run.
            return stop, "interrupted" if stop else status, next_stop_val
        if self.solver.progress:
            self.solver.progress.evaluated(curve)
        known = set(diagnostics(curve[:-1]))
        if stop:
            complete_curve(rows, stop_reason(curve[-1]) or status)
            curve = [measured(row) for row in rows]
        for sentence in diagnostics(curve):
            if sentence not in known:
                log(f"WARNING: {self.solver.name} {sentence}")
                add_problem(self.solver, sentence)
        return stop, status, next_stop_val

    def check_convergence(self, rows):
        last = measured(rows[-1])
        progress = last["step"] / last["num_steps"]
        return stop_reason(last) is not None, float(progress)


def describe_limits(name, num_evaluations, max_runs, timeout):
    """Yield warnings about limits of benchopt that can end a run early."""
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


def stop_reason(evaluation):
    """Return why a run ends after this evaluation: "diverged", "target" or
    "horizon"; None if it continues."""
    if evaluation["diverged"]:
        return "diverged"
    if evaluation["target_reached"] and evaluation["stop_at_target"]:
        return "target"
    if evaluation["step"] >= evaluation["num_steps"]:
        return "horizon"
    return None


def tokens_per_second(curve):
    """Compute the training speed since the previous evaluation; 0 at the
    first."""
    if len(curve) < 2:
        return 0.0
    before, last = curve[-2:]
    seconds = last["seconds"] - before["seconds"]
    return (last["tokens"] - before["tokens"]) / seconds


def complete_curve(rows, reason):
    """Add to every row what is known at the end of the run.

    ``stop_reason`` is "target", "horizon", "diverged", "timeout" or
    "max_runs". ``{steps,tokens,seconds}_to_target`` are interpolated linearly
    between the two evaluations around the first crossing of the target;
    infinite for a run that never reached it.

    Parameters
    ----------
    rows : list of dict
        benchopt's rows of one run, in the order of its evaluations.
    reason : str
    """
    curve = [measured(row) for row in rows]
    crossing = first_crossing(
        [evaluation["val_loss"] for evaluation in curve], curve[-1]["target"]
    )
    facts = {"stop_reason": reason} | {
        f"{quantity}_to_target": interpolate(
            [evaluation[key] for evaluation in curve], crossing
        )
        for quantity, key in [
            ("steps", "step"), ("tokens", "tokens"), ("seconds", "seconds"),
        ]
    }
    for row in rows:
        add_to_row(row, facts)
