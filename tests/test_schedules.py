"""Learning-rate schedules and evaluation steps, as published."""
import math

import numpy as np
import pytest

from benchmark_utils.training.schedules import (
    choose_eval_every,
    evaluation_share,
    evaluation_steps,
    learning_rate_factor,
)


def test_cosine_is_llmc():
    """llm.c, train_gpt2.py: (it + 1) / warmup, then 0.5 (1 + cos(pi x))."""
    for step in range(0, 19485, 13):
        if step < 700:
            expected = (step + 1) / 700
        else:
            ratio = (step - 700) / (19485 - 700)
            expected = 0.5 * (1 + math.cos(math.pi * ratio))
        factor = learning_rate_factor(step, 19485, 700, "cosine")
        assert factor == pytest.approx(expected, abs=1e-12)


def test_linear_cooldown_is_the_optimization_tracks():
    """modded-nanogpt, track 3: constant for 30 %, then linear to zero."""
    for step in range(3250):
        x = step / 3250
        expected = 1.0 if x < 0.3 else (1 - x) / 0.7
        factor = learning_rate_factor(
            step, 3250, schedule="linear", cooldown=0.7
        )
        assert factor == pytest.approx(expected, abs=1e-12)


def test_constant_stays_at_the_peak():
    factors = [learning_rate_factor(s, 10, 4, "constant") for s in range(10)]
    assert factors == [0.25, 0.5, 0.75] + [1.0] * 7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_cooldown_starts_after_the_warmup_and_only_falls(schedule):
    factors = [
        learning_rate_factor(s, 100, 20, schedule, 1.0) for s in range(100)
    ]
    assert factors[19] == factors[20] == 1.0
    assert (np.diff(factors[20:]) < 0).all()
    assert 0 < factors[-1] < 0.02


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps, cooldown", [(10, 1.0), (0, 0.0)])
def test_there_can_be_no_cooldown(warmup_steps, cooldown, schedule):
    for step in range(10):
        factor = learning_rate_factor(
            step, 10, warmup_steps, schedule, cooldown
        )
        assert factor == (min(1.0, (step + 1) / 10) if warmup_steps else 1.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("cooldown", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps, warmup_steps", [
    (1, 0), (1, 1), (2, 1), (2, 2), (7, 7),
])
def test_the_shortest_horizons_have_a_factor_at_every_step(
        num_steps, warmup_steps, cooldown, schedule):
    """Even after the last one: the warm-up always takes two steps."""
    factors = [
        learning_rate_factor(
            step, num_steps, warmup_steps, schedule, cooldown
        ) for step in range(num_steps + 1)
    ]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup_steps] == [
        (step + 1) / warmup_steps for step in range(warmup_steps)
    ]
    is_cooled = (
        schedule != "constant" and cooldown and warmup_steps < num_steps
    )
    assert factors[-1] == (0 if is_cooled else 1)


def test_evaluations_are_finer_near_the_horizon():
    steps = evaluation_steps(3250, 125)
    coarse = [step for step in steps if step < 2925]
    fine = [step for step in steps if step >= 2925]
    assert coarse == list(range(0, 2925, 125))
    assert fine == list(range(2925, 3251, 25))


@pytest.mark.parametrize("num_steps, eval_every", [(1, 125), (7, 3), (10, 1)])
def test_both_ends_are_always_evaluated(num_steps, eval_every):
    steps = evaluation_steps(num_steps, eval_every)
    assert steps[0] == 0 and steps[-1] == num_steps
    assert steps == sorted(set(steps))


def test_the_speedrun_is_evaluated_as_the_optimization_track_is():
    # 10,485,760 tokens forward are as much work as 6.67 steps of 524,288.
    for num_steps in (3250, 6200, 19485):
        assert choose_eval_every("auto", num_steps, 20 / 3) == 125
        share = evaluation_share(num_steps, 125, 20 / 3)
        work = len(evaluation_steps(num_steps, 125)) * 20 / 3
        assert share == pytest.approx(work / (work + num_steps))
        assert 0.06 < share < 0.08


@pytest.mark.parametrize("num_steps", [500, 3250, 19485])
@pytest.mark.parametrize("cost", [1.0, 7.0, 26.0])
def test_evaluations_take_a_tenth_of_the_time_at_most(num_steps, cost):
    eval_every = choose_eval_every("auto", num_steps, cost)
    assert evaluation_share(num_steps, eval_every, cost) <= 0.1
    # Not fewer evaluations than necessary.
    if eval_every > 125:
        assert evaluation_share(num_steps, eval_every // 2, cost) > 0.1
    # An explicit number has no such bound.
    assert choose_eval_every(3, num_steps, cost) == 3


def test_the_shortest_run_is_evaluated_only_at_both_ends():
    eval_every = choose_eval_every("auto", 20, 20 / 3)
    assert evaluation_steps(20, eval_every) == [0, 20]
