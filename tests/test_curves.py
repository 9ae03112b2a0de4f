"""The numbers of the figures, compared with hand-made runs."""
import numpy as np
import pandas as pd
import pytest

from benchmark_utils.analysis.comparison import steps_saved, title_of
from benchmark_utils.analysis.curves import (
    highest_loss,
    median_curves,
    seed_curves,
    share_reached,
    shows_target,
)
from benchmark_utils.analysis.labels import problem_names
from benchmark_utils.analysis.sweeps import (
    at_the_edge,
    equal_times,
    sweep,
    swept_parameters,
)
from benchmark_utils.analysis.table import one_problem, plain, runs
from benchmark_utils.analysis.verdict import verdict
from made_curves import CASES, results


def problem(frame):
    """The evaluations of the only problem of benchopt's results."""
    evaluations = plain(frame)
    only, = problem_names(evaluations).values()
    return one_problem(evaluations, *only)


def run_of(losses, seconds, repetition=0, reason="horizon", every=10):
    """Evaluations of one run, ``every`` steps apart."""
    steps = every * np.arange(len(losses))
    return pd.DataFrame({
        "label": "A", "base_seed": 0, "repetition": repetition, "step": steps,
        "seconds": seconds, "tokens": 512 * steps, "val_loss": losses,
        "target": 2.0, "stop_reason": reason,
        "diverged": np.isinf(losses).astype(int),
    })


def test_a_median_is_that_of_the_evaluations():
    runs = [
        run_of([5, 4, 3.0], [0, 1, 2], 0), run_of([5, 3.5, 2.5], [0, 3, 4], 1),
        run_of([5, 4.5, 2.2], [0, 2, 3], 2),
    ]
    curve = median_curves(pd.concat(runs), "seconds", 9)
    assert curve["x"].tolist() == [0, 2, 3]
    assert curve["val_loss"].tolist() == [5, 4, 2.5]
    assert curve["low"].tolist() == [5, 3.5, 2.2]
    assert curve["high"].tolist() == [5, 4.5, 3]


def test_a_median_goes_on_until_half_of_the_runs_have_ended():
    runs = [
        run_of([5, 3, 1.9], [0, 1, 2], 0, "target"),
        run_of([5, 4, 3, 1.8], [0, 1, 2, 3], 1, "target"),
        run_of([5, 4.5, 3.5, 2.5, 1.7], [0, 5, 10, 15, 20], 2, "target"),
    ]
    curve = median_curves(pd.concat(runs), "steps", 9)
    # Whatever the first would have come to, it is below the two others: the
    # median at step 30 is the lower of theirs.
    assert curve["x"].tolist() == [0, 10, 20, 30]
    assert curve["val_loss"].tolist() == [5, 4, 3, 1.8]
    assert curve["low"].notna().tolist() == [True, True, True, False]


def test_seconds_never_go_back_where_repetitions_end():
    """The slow repetition ends first: the median of the seconds of those that
    are still training would fall from 20 to 3."""
    runs = [
        run_of([5, 3, 1.9], [0, 10, 20], 0, "target"),
        run_of([5, 4, 3, 1.8], [0, 1, 2, 3], 1, "target"),
        run_of([5, 4, 3, 2.5, 1.7], [0, 1, 2, 3, 4], 2, "target"),
    ]
    curve = median_curves(pd.concat(runs), "seconds", 9)
    assert curve["x"].tolist() == [0, 4, 8, 9]
    assert (np.diff(curve["x"]) > 0).all()


def test_a_median_is_between_evaluations_where_they_differ():
    runs = [
        run_of([5, 4, 3, 2.4, 2.2], [0, 1, 2, 3, 4], 0),
        run_of([5, 3, 2], [0, 4, 8], 1, every=20),
    ]
    curve = median_curves(pd.concat(runs), "seconds", 9)
    assert curve["val_loss"].tolist() == pytest.approx([5, 4, 3, 2.45, 2.1])
    assert curve["x"].tolist() == pytest.approx([0, 1.5, 3, 4.5, 6])


def test_a_run_that_diverges_is_above_the_others():
    runs = [
        run_of([5, np.inf], [0, 1], 0, "diverged"),
        run_of([5, 4, 3], [0, 1, 2], 1), run_of([5, 4.5, 3.5], [0, 1, 2], 2),
    ]
    curve = median_curves(pd.concat(runs), "steps", 6)
    assert curve["val_loss"].tolist() == [5, 4.5, 3.5]
    assert curve["low"].notna().tolist() == [True, False, False]
    diverged = median_curves(runs[0], "steps", 6)
    assert diverged["val_loss"].tolist() == [5]


def test_a_curve_enters_the_zoom_where_it_crosses_its_upper_end():
    run = run_of([5, 3, 2.1, 2.9, 1.9], [0, 1, 2, 3, 4])
    highest = highest_loss(run, near_target=True)
    assert highest == pytest.approx(2 + 0.05 * 3)
    curve = seed_curves(run, "steps", highest)
    inside = curve.dropna()
    assert inside["val_loss"].max() == pytest.approx(highest)
    assert inside["x"].tolist() == pytest.approx([
        10 + 10 * 0.85 / 0.9, 20, 20 + 10 * 0.05 / 0.8, 30 + 10 * 0.75, 40
    ])
    # It leaves between steps 20 and 30: there is no line there.
    assert curve["val_loss"].isna().sum() == 1


def test_a_zoom_far_from_the_target_is_on_the_runs():
    """The target would take up all of its height."""
    far = pd.concat([
        run_of([5.5, 4.1, 3.9], [0, 1, 2], 0),
        run_of([5.5, 4.2, 4.0], [0, 1, 2], 1),
        run_of([5.5, 5.4, 5.3], [0, 1, 2], 2),
    ])
    highest = highest_loss(far, near_target=True)
    assert highest == pytest.approx(4 + 0.05 * 1.5)
    assert not shows_target(far, near_target=True)
    assert shows_target(far)
    # One that gets there decides, however many don't.
    one = pd.concat([far, run_of([5.5, 3, 1.9], [0, 1, 2], 3)])
    assert highest_loss(one, near_target=True) == pytest.approx(
        2 + 0.05 * 3.5
    )
    near = run_of([5, 3, 2.05], [0, 1, 2])
    assert shows_target(near, near_target=True)


def test_shares_at_the_target_are_kaplan_meiers():
    steps = [250, 270, 290, np.inf, np.inf]
    frame = pd.DataFrame({
        "label": "A", "steps_to_target": steps,
        "reached": np.isfinite(steps), "trained_to": [250, 270, 290, 300, 280],
    })
    curve, censored = share_reached(frame)
    heights = curve.groupby("steps")["share"].max()
    # The run that ended at 280 is not among those at risk at 290: two are.
    assert heights.to_dict() == pytest.approx({
        0: 0, 250: 0.2, 270: 0.4, 280: 0.4, 290: 0.7, 300: 0.7
    })
    assert dict(zip(
        censored["steps"], censored["share"], strict=True
    )) == pytest.approx(
        {280: 0.4, 300: 0.7}
    )


def test_steps_saved_are_those_of_the_verdict():
    found = verdict(runs(problem(CASES["three"])))
    saved, without = steps_saved(found)
    muon, adam = saved.itertuples(index=False)
    ratio = found.comparisons["Muon"].ratio
    assert muon.label == "Muon" and without == ["SGD"]
    assert muon.saved == pytest.approx(100 - 100 * ratio.value)
    assert muon.low == pytest.approx(100 - 100 * ratio.high)
    assert muon.low < muon.saved < muon.high
    assert adam.label == "Adam" and adam.saved == 0
    # The title fits, however many have no ratio.
    title = "Steps saved against Adam, 95 % intervals; no ratio: "
    assert title_of("Adam", saved, without) == title + "SGD"
    assert title_of("Adam", saved, 9 * ["SOAP lr=0.01"]) == (
        title + "9 of the solvers"
    )


def test_a_title_promises_no_interval_where_there_is_none():
    """One seed has none, and a solver alone has nothing to compare with."""
    for case, title in [
        ({"Adam": {"steps": 150}, "Muon": {"steps": 100}},
         "Steps saved against Adam"),
        ({"Adam": {"steps": 150}, "SGD": {"steps": 900}},
         "Steps saved against Adam; no ratio: SGD"),
        ({"Adam": {"steps": 150}},
         "Steps saved against Adam: there is no other solver"),
    ]:
        found = verdict(runs(problem(results(case, num_seeds=1))))
        assert title_of(found.baseline, *steps_saved(found)) == title


@pytest.mark.parametrize("case, without", [
    ("all censored", ["Adam", "SGD"]), ("one diverged", ["Adam", "SGD"]),
])
def test_nothing_is_saved_against_a_baseline_that_never_got_there(
        case, without):
    saved, missing = steps_saved(verdict(runs(problem(CASES[case]))))
    assert saved.empty and missing == without
    assert title_of("Adam", saved, missing) == (
        "Steps saved against Adam: some of its seeds missed the target"
    )


def test_a_sweep_marks_its_best_and_what_diverged():
    table = runs(problem(CASES["a sweep"]))
    assert swept_parameters(table) == ["learning_rate"]
    points = at_the_edge(sweep(table, "learning_rate", "steps_to_target"))
    assert points["label"].unique().tolist() == ["Adam"]
    assert points["value"].tolist() == [0.001, 0.003, 0.01, 0.03]
    assert points["best"].tolist() == [False, True, False, False]
    assert points["diverged"].tolist() == [0, 0, 1, 3]
    steps = table.groupby("p_solver_learning_rate")["steps_to_target"]
    assert points["median"].tolist() == steps.median().tolist()
    assert points["y"].iloc[3] > points["high"].max()
    # Without any value that got there, there is no scale, and no edge.
    never = sweep(
        table[table["p_solver_learning_rate"].isin([0.01, 0.03])].assign(
            steps_to_target=np.inf
        ), "learning_rate", "steps_to_target",
    )
    assert len(never) == 2 and at_the_edge(never).empty
    assert not swept_parameters(runs(problem(CASES["three"])))


def test_lines_of_equal_time_are_what_they_say():
    table = runs(problem(CASES["three"]))
    lines = equal_times(table)
    assert np.allclose(
        lines["steps"] * lines["ms_per_step"], 1000 * lines["seconds"]
    )
    reached = table[table["reached"]]
    seconds = reached["steps_to_target"] * reached["ms_per_step"] / 1000
    assert lines["seconds"].between(
        0.9 * seconds.min(), 1.1 * seconds.max()
    ).all()


def test_problems_are_told_apart():
    evaluations = plain(CASES["two problems"])
    names = problem_names(evaluations)
    assert list(names) == ["Simulated margin=0.1", "Simulated margin=0.2"]
    assert list(names.values()) == [
        (f"Simulated[margin={margin}]", "nanoGPT[2x32]")
        for margin in [0.1, 0.2]
    ]
    assert list(problem_names(plain(CASES["three"]))) == ["Simulated"]
