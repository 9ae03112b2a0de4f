"""Learning-rate schedules, and the steps at which a run is evaluated."""
import math

SCHEDULES = ("constant", "linear", "cosine")
# Steps between evaluations in modded-nanogpt's optimization track.
EVAL_EVERY = 125
# The share of a run's work that evaluations take, unless more is asked for.
MAX_EVALUATION_SHARE = 0.1


def learning_rate_factor(step, num_steps, warmup_steps=0,
                         schedule="constant", cooldown=1.0):
    """Factor of the peak learning rate for one optimizer step.

    Linear warm-up, (s + 1) / warmup_steps for the s-th step, then constant,
    then a cool-down that would reach zero at ``num_steps``. With
    ``cooldown=1.0`` there is no constant part: "cosine" is then llm.c's
    schedule and "linear" the linear decay; "linear" with ``cooldown=0.7`` is
    the schedule of modded-nanogpt's optimization track.

    Parameters
    ----------
    step : int
        Steps done before this one, in [0, num_steps]. After the last one, the
        factor is the cool-down's end, or 1 where nothing is left for it.
    num_steps : int
        The horizon.
    warmup_steps : int
        0 for no warm-up.
    schedule : {"constant", "linear", "cosine"}
        The shape of the cool-down.
    cooldown : float in [0, 1]
        Share of the horizon that the cool-down takes; 0 for none. It never
        starts before the warm-up has ended.

    Returns
    -------
    factor : float in [0, 1]
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


def evaluation_steps(num_steps, eval_every):
    """The steps after which a run is evaluated.

    Every ``eval_every`` steps, five times as often in the last tenth of the
    horizon, where a method whose horizon is tuned crosses the target, and at
    both ends.

    Returns
    -------
    steps : list of int, increasing, from 0 to num_steps
    """
    fine = max(1, eval_every // 5)
    start = num_steps - num_steps // 10
    return sorted({
        0, num_steps,
        *range(0, num_steps, eval_every),
        *(step for step in range(0, num_steps, fine) if step >= start),
    })


def evaluation_share(num_steps, eval_every, evaluation_cost):
    """The share of a run's work that its evaluations are.

    Parameters
    ----------
    num_steps, eval_every : int
    evaluation_cost : float
        Work of one evaluation, in training steps.

    Returns
    -------
    share : float in (0, 1)
    """
    work = evaluation_cost * len(evaluation_steps(num_steps, eval_every))
    return work / (work + num_steps)


def choose_eval_every(eval_every, num_steps, evaluation_cost):
    """Decide how many steps lie between evaluations.

    Parameters
    ----------
    eval_every : int or "auto"
        "auto" is 125, doubled until evaluations are at most a tenth of the
        work, or until there are none but those at both ends.
    num_steps : int
    evaluation_cost : float
        Work of one evaluation, in training steps.

    Returns
    -------
    eval_every : int

    Raises
    ------
    ValueError
        If it is neither "auto" nor an int of at least 1.
    """
    if eval_every == "auto":
        eval_every = EVAL_EVERY
        while len(evaluation_steps(num_steps, eval_every)) > 2 and (
            evaluation_share(num_steps, eval_every, evaluation_cost)
            > MAX_EVALUATION_SHARE
        ):
            eval_every *= 2
        return eval_every
    if type(eval_every) is not int or eval_every < 1:
        raise ValueError(
            f"eval_every={eval_every!r} must be a number of steps, at least "
            "1, or 'auto'."
        )
    return eval_every
