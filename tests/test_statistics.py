import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmark_utils.analysis.statistics import (
    difference,
    holm,
    power,
    ratio,
    seeds_needed,
    smallest_p,
    track_rule,
)
from benchmark_utils.analysis.survival import (
    logrank,
    median_to_target,
    restricted_difference,
    survival,
)

# Freireich and others, Blood 21 (1963): weeks of remission of 21 patients
# with 6-MP and 21 with placebo. The medians 23 and 8, their log-log intervals
# (13, open) and (4, 11) and chi-square 16.79 are in many textbooks.
DRUG = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32,
        34, 35]
DRUG_REACHED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22,
           23]

A = [3251.2, 3243.1, 3262.5]
B = [3218.3, 3211.9, 3226.4]


def test_paired_interval_of_three_seeds_is_the_published_one():
    value, low, high, p = difference(B, A, paired=True)
    assert (value, low, high) == pytest.approx((-33.4, -39.6, -27.2), abs=0.05)
    # By hand: t of the differences -32.9, -31.2, -36.1 with two degrees of
    # freedom, whose distribution is in closed form.
    t = -33.4 / (2.4880 / math.sqrt(3))
    assert p == pytest.approx(1 + t / math.sqrt(2 + t * t), rel=1e-3)


def test_unpaired_interval_of_three_seeds_is_the_published_one():
    value, low, high, _ = difference(B, A, paired=False)
    assert (low, high) == pytest.approx((-53.5, -13.3), abs=0.05)


def test_ratio_is_that_of_geometric_means_and_turns_round():
    forth, back = ratio(B, A, paired=True), ratio(A, B, paired=True)
    assert forth.value == pytest.approx(
        stats.gmean(B) / stats.gmean(A), rel=1e-12
    )
    assert forth.low == pytest.approx(1 / back.high, rel=1e-12)
    assert forth.p == pytest.approx(back.p, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("paired", [True, False])
def test_values_without_spread_get_no_p_value(shift, paired):
    same = np.array(A) if paired else np.full(3, 3251.2)
    value, low, high, p = difference(same + shift, same, paired)
    assert value == pytest.approx(shift)
    assert all(map(math.isnan, (low, high, p)))


def test_too_few_seeds_get_no_interval():
    assert math.isnan(difference([1.0], [2.0], paired=True).low)
    assert math.isnan(difference([1.0], [2.0, 3.0], paired=False).p)
    assert math.isnan(median_to_target(A, [1, 1, 0]).low)


def test_median_and_interval_with_censored_seeds_are_the_textbook_ones():
    assert median_to_target(DRUG, DRUG_REACHED) == (23, 13, math.inf)
    assert median_to_target(PLACEBO, np.ones(21)) == (8, 4, 11)


@pytest.mark.parametrize("n", range(2, 61, 2))
def test_median_is_the_first_time_at_one_half_in_spite_of_rounding(n):
    times = np.arange(1.0, n + 1)
    assert median_to_target(times, np.ones(n)).value == n / 2
    # The same at a product of fractions: censored seeds that come first.
    times = np.concatenate([np.zeros(3), times])
    reached = np.arange(n + 3) >= 3
    assert median_to_target(times, reached).value == n / 2


def test_half_of_the_seeds_censored_is_not_imputed():
    assert median_to_target([200, 250, 300, 300, 300], [1, 1, 0, 0, 0]) == (
        math.inf, 200, math.inf
    )
    never = median_to_target([300] * 5, [0] * 5)
    assert math.isinf(never.value) and math.isnan(never.low)


def test_crossing_at_the_horizon_is_an_event():
    curve = survival([290, 300, 300], [1, 1, 0])
    np.testing.assert_allclose(curve.share, [2 / 3, 1 / 3])


def test_logrank_of_many_seeds_is_the_textbook_one():
    test = logrank(DRUG, DRUG_REACHED, PLACEBO, np.ones(21))
    assert test.z ** 2 == pytest.approx(16.79, abs=0.005)
    assert test.z < 0 and not test.exact
    assert test.p == pytest.approx(stats.chi2.sf(test.z ** 2, 1), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_permuted_logrank_is_the_share_of_splits_as_far_apart(seed):
    generator = np.random.default_rng(seed)
    # Whole numbers, for ties.
    times = generator.integers(1, 9, 9).astype(float)
    reached = generator.random(9) < 0.7

    def statistic(chosen):
        rest = [i for i in range(9) if i not in chosen]
        return abs(stats.logrank(*(
            stats.CensoredData.right_censored(times[part], ~reached[part])
            for part in (list(chosen), rest)
        )).statistic)

    all_of_them = [
        statistic(chosen) for chosen in itertools.combinations(range(9), 4)
    ]
    expected = np.mean(np.array(all_of_them) >= all_of_them[0] - 1e-9)
    test = logrank(times[:4], reached[:4], times[4:], reached[4:])
    assert test.exact
    assert test.p == pytest.approx(expected, abs=1e-12)


def test_separated_samples_have_the_smallest_p_value_there_is():
    for n in (4, 5, 9):
        test = logrank(
            np.arange(n), np.ones(n), np.arange(n) + 100, np.ones(n)
        )
        assert test.p == pytest.approx(2 / math.comb(2 * n, n))
        assert test.p == pytest.approx(smallest_p(n, n, paired=False))
        assert test.z > 0


def test_tests_that_cannot_reject_give_no_p_value():
    assert smallest_p(3, 3, paired=False) == pytest.approx(0.1)
    assert smallest_p(3, 3, paired=True) == 0.25
    assert math.isnan(logrank(A, np.ones(3), B, np.ones(3)).p)
    assert math.isnan(logrank([1], [1], [5], [1]).p)
    # scipy itself has .025 here.
    assert math.isnan(logrank([1], [1], [5, 6, 7, 8, 9], np.ones(5)).p)
    # No seed reached the target.
    assert math.isnan(logrank([300] * 5, [0] * 5, [300] * 5, [0] * 5).p)


def test_two_samples_that_part_beyond_the_horizon_do_not_differ():
    a, a_reached = [250, 270, 290, 300, 300], [1, 1, 1, 0, 0]
    b, b_reached = [250, 270, 290, 330, 360], [1, 1, 1, 1, 1]
    assert logrank(a, a_reached, b, b_reached).p == 1
    assert median_to_target(a, a_reached).value == 290
    assert median_to_target(b, b_reached).value == 290
    assert np.minimum(a, 300).mean() == np.minimum(b, 300).mean() == 282
    assert restricted_difference(a, b, 300, paired=False).value == 0


def test_horizon_does_not_decide_between_equal_solvers():
    """The same seeds, trained to 300 and to 400 steps: with infinity or the
    horizon in place of the missing ones, the first would look worse."""
    times = np.linspace(200, 390, 12)
    test = logrank(
        np.minimum(times, 300), times <= 300, times, np.ones(12)
    )
    assert test.z == pytest.approx(0, abs=1e-9)


def test_a_number_in_place_of_a_censored_seed_would_blur_a_verdict():
    """Steps to 3.28 of two published solvers, NorMuon (twenty seeds of 3,300
    steps) and Contra-Muon with a split cool-down (ten of 3,175, of which two
    never got there): modded-nanogpt, track 3, entries 10 and 24. Every seed
    of the second that got there is sooner than any of the first."""
    first = np.array([
        3221.3, 3221.7, 3226.9, 3229.6, 3229.8, 3230.9, 3231.4, 3233.2, 3233.3,
        3233.6, 3234.4, 3236.5, 3237.5, 3239.5, 3241.2, 3243.3, 3247.2, 3259.5,
        3266.5, 3268.8,
    ])
    second = np.array([
        3118.8, 3120.1, 3120.9, 3121.4, 3122.8, 3126.4, 3131.5, 3138.2,
        math.inf, math.inf,
    ])
    reached = np.isfinite(second)

    def share_of_pairs_won(second):
        return np.mean(second[:, None] < first)

    # Infinity in the place of the two says 8 of 10 pairs, the horizon says
    # all of them: it is the number that decides.
    known = np.where(reached, second, 3175.0)
    assert share_of_pairs_won(second) == pytest.approx(0.8)
    assert share_of_pairs_won(known) == 1
    test = logrank(known, reached, first, np.ones(20))
    assert test.z > 0 and test.p == pytest.approx(3.4e-7, rel=0.01)


def test_holm_is_that_of_the_textbook():
    np.testing.assert_allclose(
        holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    assert holm([0.0067] + [0.5] * 16)[0] == pytest.approx(0.114, abs=5e-4)


def test_holm_does_not_count_what_was_not_tested():
    adjusted = holm([0.02, math.nan, 0.04])
    np.testing.assert_allclose(adjusted, [0.04, math.nan, 0.04])


@pytest.mark.parametrize("paired, n", [(True, 34), (False, 64)])
def test_seeds_for_half_a_standard_deviation_are_the_tabulated_ones(paired, n):
    # Cohen's d = 0.5, power .8, two-sided .05.
    assert seeds_needed(0.5, 1.0, paired) == n


@pytest.mark.parametrize("paired", [True, False])
def test_power_is_that_of_simulated_tests(paired):
    generator = np.random.default_rng(0)

    def shifted(size):
        return generator.normal(0.9, 1, size)

    if paired:
        def test(x, axis):
            return stats.ttest_1samp(x, 0, axis=axis)
        simulated = stats.power(
            test, shifted, 7, significance=0.05, n_resamples=40_000
        )
    else:
        simulated = stats.power(
            stats.ttest_ind, (generator.standard_normal, shifted), (7, 7),
            significance=0.05, n_resamples=40_000,
        )
    assert power(0.9, 1.0, 7, paired) == pytest.approx(
        float(simulated.power), abs=0.01
    )


def test_seeds_needed_are_at_least_two_and_may_be_too_many():
    assert seeds_needed(100.0, 0.1, paired=True) == 2
    assert seeds_needed(1e-6, 1.0, paired=True) is None


def test_track_rule_passes_where_the_spread_speaks_against_it():
    """Lion's spread is five times what the rule takes for granted."""
    losses = 3.277 + 0.0064 * np.array([-1.2, -0.4, 0.4, 1.2])
    rule = track_rule(losses)
    assert rule.statistic == pytest.approx(0.006)
    assert rule.passes and rule.p > 0.05
    assert not track_rule([3.2781, 3.2785]).passes
    assert math.isnan(track_rule([3.27]).p)


def draws(n, correlation=0.0, spread=(25.0, 25.0), count=10_000, seed=0):
    """Steps to target of two equal solvers: two arrays (count, n)."""
    generator = np.random.default_rng([n, seed])
    shared = generator.standard_normal((count, n))
    return [
        3250 + sd * (
            math.sqrt(correlation) * shared
            + math.sqrt(1 - correlation)
            * generator.standard_normal((count, n))
        ) for sd in spread
    ]


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_paired_interval_of_a_ratio_holds_the_truth_as_often_as_it_says(
    n, correlation
):
    a, b = draws(n, correlation, spread=(13.0, 40.0))
    estimate = ratio(0.9 * a, b, paired=True)
    held = np.mean((estimate.low < 0.9) & (0.9 < estimate.high))
    # Four standard errors of 10,000 draws.
    assert held == pytest.approx(0.95, abs=0.009)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_unpaired_interval_of_a_ratio_holds_the_truth_at_least_as_often(n):
    a, b = draws(n, spread=(13.0, 40.0))
    estimate = ratio(a, b, paired=False)
    held = np.mean((estimate.low < 1) & (1 < estimate.high))
    assert 0.94 < held < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("censored", [0.0, 0.2])
def test_median_interval_holds_the_truth_as_often_as_it_says(n, censored):
    horizon = 3250 + 25 * stats.norm.isf(censored)
    held = 0
    for times in draws(n)[0]:
        _, low, high = median_to_target(
            np.minimum(times, horizon), times <= horizon
        )
        # Without any event there is no interval, and none that is wrong.
        held += math.isnan(low) or low <= 3250 <= high
    assert 0.93 < held / 10_000 < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("n, expected", [(3, 0.0), (5, 0.048), (10, 0.062)])
@pytest.mark.parametrize("censored", [0.2, 0.5])
def test_logrank_errs_no_more_often_than_it_says(n, expected, censored):
    # At 10 seeds it is by chi-square, which errs a little.
    horizon = 3250 + 25 * stats.norm.isf(censored)
    a, b = draws(n)
    p = np.array([
        logrank(
            np.minimum(x, horizon), x <= horizon,
            np.minimum(y, horizon), y <= horizon,
        ).p for x, y in zip(a, b, strict=True)
    ])
    errors = np.mean(p < 0.05)
    assert errors <= expected + 0.008
    assert (errors > 0.02) == (n > 3)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_restricted_difference_holds_the_truth_with_a_fifth_censored(n):
    a, b = draws(n)
    until = 3250 + 25 * stats.norm.isf(0.2)
    estimate = restricted_difference(a, b, until, paired=True)
    held = np.mean(~((estimate.low > 0) | (estimate.high < 0)))
    assert held == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 10])
def test_one_of_seventeen_equal_solvers_is_rarely_called_different(n):
    generator = np.random.default_rng(n)
    baseline = generator.normal(3250, 25, (10_000, 1, n))
    others = generator.normal(3250, 25, (10_000, 17, n))
    p = difference(
        others, np.broadcast_to(baseline, others.shape), paired=True
    ).p
    errors = np.mean([(holm(row) < 0.05).any() for row in p])
    assert errors < 0.058
    # Without the adjustment it happens all the time.
    assert np.mean((p < 0.05).any(axis=1)) > 0.2
