"""Learning-rate schedules and evaluation steps."""
import math

SCHEDULES = ("constant", "linear", "cosine")
# Steps between evaluations in modded-nanogpt's optimization track.
EVAL_EVERY = 125
# Upper bound of the share of work that evaluations take by default.
MAX_EVALUATION_SHARE = 0.1


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int = 0,
                         schedule: str = "constant",
                         cooldown: float = 1.0) -> float:
    """Compute the factor of the peak learning rate for one step.

    Linear warm-up, (s + 1) / warmup_steps for the s-th step, then constant,
    then a cool-down that would reach zero at ``num_steps``. With
    ``cooldown=1.0`` there is no constant part: "cosine" is then llm.c's
    schedule and "linear" the linear decay; "linear" with ``cooldown=0.7`` is
    the schedule of modded-nanogpt's optimization track.

    Parameters
    ----------
    step : int
        Steps done before this one, in [0, num_steps]. After the last step,
        the factor is the cool-down's end, or 1 without a cool-down.
    num_steps : int
        The horizon.
    warmup_steps : int
        0 for no warm-up.
    schedule : {"constant", "linear", "cosine"}
        The shape of the cool-down.
    cooldown : float in [0, 1]
        Share of the horizon that the cool-down takes; 0 for none. It never
        starts before the end of the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = max(warmup_steps, (1 - cooldown) * num_steps)
    if schedule == "constant" or step < start or start >= num_steps:
        return 1.0
    remaining = (num_steps - step) / (num_steps - start)
    if schedule == "linear":
        return remaining
    return 0.5 * (1 - math.cos(math.pi * remaining))


def evaluation_steps(num_steps: int, eval_every: int) -> list[int]:
    """List the steps after which a run is evaluated, from 0 to ``num_steps``.

    Evaluations are ``eval_every`` steps apart, and five times as dense in the
    last tenth of the horizon, where a method with a tuned horizon crosses the
    target.
    """
    fine = max(1, eval_every // 5)
    start = num_steps - num_steps // 10
    return sorted({
        0, num_steps,
        *range(0, num_steps, eval_every),
        *(step for step in range(0, num_steps, fine) if step >= start),
    })


def evaluation_share(
    num_steps: int, eval_every: int, evaluation_cost: float
) -> float:
    """Compute the share of a run's work that evaluations take.

    ``evaluation_cost`` is the work of one evaluation, in training steps.
    """
    work = evaluation_cost * len(evaluation_steps(num_steps, eval_every))
    return work / (work + num_steps)


def choose_eval_every(
    eval_every: int | str, num_steps: int, evaluation_cost: float
) -> int:
    """Choose the number of steps between evaluations.

    Parameters
    ----------
    eval_every : int or "auto"
        "auto" is 125, doubled until evaluations take at most a tenth of the
        work, or until only those at both ends are left.
    num_steps : int
    evaluation_cost : float
        Work of one evaluation, in training steps.

    Raises
    ------
    ValueError
        If ``eval_every`` is neither "auto" nor an int of at least 1.
    """
    if eval_every == "auto":
        chosen = EVAL_EVERY
        while len(evaluation_steps(num_steps, chosen)) > 2 and (
            evaluation_share(num_steps, chosen, evaluation_cost)
            > MAX_EVALUATION_SHARE
        ):
            chosen *= 2
        return chosen
    if type(eval_every) is not int or eval_every < 1:
        raise ValueError(
            f"eval_every={eval_every!r} must be a number of steps, at least "
            "1, or 'auto'."
        )
    return eval_every
