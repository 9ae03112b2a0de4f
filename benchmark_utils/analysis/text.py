"""Numbers in words, for verdicts and tables.

A ratio has three decimals in a table and one decimal as a percentage in a
sentence, so that both have the same precision.
"""
from benchmark_utils.analysis.statistics import ALPHA


def change(ratio):
    """A ratio in words: "32.4 % fewer", "5.0 % more", "2.125 times as
    many"."""
    if ratio >= 2:
        return f"{ratio:.3f} times as many"
    return f"{percent(ratio)} % {'fewer' if ratio < 1 else 'more'}"


def than(ratio):
    """The word between a change and what it is compared with."""
    return "as" if ratio >= 2 else "than"


def change_interval(estimate):
    """The interval of a ratio, in the words of ``change``; of its size alone
    where both ends are on one side."""
    low, high = estimate.low, estimate.high
    if estimate.value >= 2:
        return f"95 % CI {low:.3f} to {high:.3f}"
    if (low < 1) == (high < 1) and high < 2:
        ends = sorted([low, high], key=lambda ratio: abs(ratio - 1))
        return f"95 % CI {percent(ends[0])} to {percent(ends[1])}"
    return f"95 % CI {change(low)} to {change(high)}"


def percent(ratio):
    """How far a ratio is from 1, in percent."""
    return f"{100 * abs(ratio - 1):.1f}"


def fewer_or_more(steps):
    """A difference of steps: "12.5 fewer"."""
    return f"{abs(steps):.3g} {'fewer' if steps < 0 else 'more'}"


def in_short(comparison):
    """A ``Comparison`` in a few words, for the cell of a table."""
    if comparison is None:
        return "baseline"
    if comparison.p != comparison.p:
        return "no test"
    words = "not distinguishable"
    if comparison.adjusted_p < ALPHA:
        words = "sooner" if comparison.sooner else "later"
    return f"{words}, p = {p_value(comparison.adjusted_p)}"


def p_value(p):
    """A p-value to two digits, to one if it is below .001."""
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"


def mean_and_sd(mean, sd):
    """"199.2 \u00b1 6.1", "3251 \u00b1 12"; without an sd, the mean."""
    if not sd < 10:
        digits = 1 if sd != sd else 0
    else:
        digits = 1 if sd >= 1 else 2
    text = f"{mean:.{digits}f}"
    return text if sd != sd else f"{text} \u00b1 {sd:.{digits}f}"


def times_of(rows):
    """A solver's steps to target as a clause; of one or two seeds, each."""
    label, n = rows["label"].iloc[0], len(rows)
    steps, reached = rows["steps_to_target"], rows["reached"]
    if n > 2 and not reached.all():
        return (
            f"{label}: {reached.sum()} of {n} seeds within {horizon_of(rows)}"
        )
    if n > 2:
        return (
            f"{label}: {mean_and_sd(steps.mean(), steps.std())} steps "
            f"({n} seeds)"
        )
    if n == 2 and not reached.any():
        ends = [f"{step}" for step in dict.fromkeys(rows["trained_to"])]
        return (
            f"{label} missed the target in both seeds (trained for "
            f"{' and '.join(ends)} steps)"
        )
    each = [
        f"{row.steps_to_target:.1f} steps" if row.reached
        else f"not within {row.trained_to} steps" for row in rows.itertuples()
    ]
    seeds = "one seed" if n == 1 else "two seeds"
    return f"{label}: {' and '.join(each)} ({seeds})"


def reached_by(a, b):
    """How many seeds of both reached the target, and within which horizon."""
    counts = [
        f"{rows['reached'].sum()} of {len(rows)}" for rows in (a, b)
    ]
    horizons = [horizon_of(rows) for rows in (a, b)]
    seeds = "seed" if len(a) == 1 else "seeds"
    if horizons[0] == horizons[1]:
        both = f"{counts[0]} {seeds} against {counts[1]}"
        if counts[0] == counts[1]:
            # One seed each is counted only where neither reached it.
            both = (
                "one seed each" if len(a) == 1 else f"{counts[0]} seeds each"
            )
        return f"{both} within {horizons[0]}"
    return (
        f"{counts[0]} {seeds} within {horizons[0]} against {counts[1]} within "
        f"{horizons[1]}"
    )


def horizon_of(rows):
    """"300 steps", or the range of a solver's horizons."""
    low, high = rows["num_steps"].min(), rows["num_steps"].max()
    return f"{low} steps" if low == high else f"{low} to {high} steps"


def losses_of(rows):
    """A solver's final losses as a clause; of one or two seeds, each."""
    values = rows["val_loss"]
    label = rows["label"].iloc[0]
    if len(values) > 2:
        return f"{label} {values.mean():.4f} \u00b1 {values.std():.2g}"
    return f"{label} {' and '.join(f'{value:.4f}' for value in values)}"
