import math

import pandas as pd
import pytest

from benchmark_utils.analysis import table
from benchmark_utils.analysis.comparability import comparable_seconds
from benchmark_utils.analysis.comparison import choose_baseline, summaries
from benchmark_utils.analysis.labels import labels, problem_names
from benchmark_utils.analysis.verdict import verdict
from made_results import made_results, made_run


def runs_of(results):
    evaluations = table.plain(results)
    problem, = problem_names(evaluations).values()
    return table.runs(table.one_problem(evaluations, *problem))


def verdict_of(*results, baseline=None, **options):
    """The verdict on results: frames, rows, or arguments of made_results."""
    return verdict(runs_of(pd.concat([
        made_results(each, **options) if isinstance(each, dict)
        else pd.DataFrame(each) for each in results
    ])), baseline)


def test_labels_say_only_what_differs():
    def solver(name, **parameters):
        return {"solver": f"{name}[{parameters}]"} | {
            f"p_solver_{key}": value for key, value in parameters.items()
        }
    runs = pd.DataFrame([
        solver("Adam", learning_rate=0.01, num_steps=60, beta1=0.9),
        solver("Adam", learning_rate=0.003, num_steps=60, beta1=0.9),
        solver("Muon", learning_rate=0.02, num_steps=50),
        solver("SOAP", aux_learning_rate=0.1, max_grad_norm=None),
        solver("SOAP", aux_learning_rate=0.2, max_grad_norm=1.0),
        solver("pytorch-optimizer", optimizer="adan"),
        solver("Lion", learning_rate=0.01, num_steps=60, settings=None),
        solver("Lion", settings="auto"),
        solver("Lion", settings="modern", learning_rate=0.1),
        solver("Lion", settings="modern", learning_rate=0.2),
    ])
    assert list(labels(runs).values()) == [
        "Adam lr=0.003", "Adam lr=0.01", "adan",
        "Lion settings=auto", "Lion settings=modern lr=0.1",
        "Lion settings=modern lr=0.2", "Lion settings=None", "Muon",
        "SOAP aux_lr=0.1 clip=None", "SOAP aux_lr=0.2 clip=1",
    ]


def test_solvers_that_differ_in_nothing_known_keep_their_names():
    runs = pd.DataFrame({"solver": ["Adam[a=1]", "Adam[a=2]"]})
    assert labels(runs) == {
        "Adam[a=1]": "Adam[a=1]", "Adam[a=2]": "Adam[a=2]"
    }


def test_run_counts_with_its_last_row_and_its_dearest_moment():
    runs = runs_of(made_results({"Adam": [250.5, None]}))
    assert runs["step"].tolist() == [251, 300]
    assert runs["reached"].tolist() == [True, False]
    assert runs["trained_to"].tolist() == [251, 300]
    assert runs["ms_per_step"].tolist() == pytest.approx([10, 10])
    assert runs["peak_memory_mib"].tolist() == pytest.approx([402.51, 403])
    assert runs["val_loss"].tolist() == pytest.approx([2.499, 2.6])


def test_diverged_seed_is_at_risk_to_its_horizon():
    runs = runs_of(pd.DataFrame(
        made_run("Adam", 0, None, diverged_at=40)
        + made_run("Adam", 1, 250) + made_run("Adam", 2, 260)
    ))
    assert runs["trained_to"].tolist() == [300, 250, 260]
    # Lost at step 40, it would leave two seeds, and a median of 250.
    summary = summaries(runs).iloc[0]
    assert (summary["n"], summary["reached"], summary["median"]) == (
        3, 2, 260
    )
    assert math.isnan(summary["mean"])
    assert any("1 of 3 seeds of Adam diverged" in note
               for note in verdict(runs).notes)


def test_a_run_that_trained_nothing_is_named():
    notes = " ".join(verdict_of(
        made_run("Adam", 0, 250, objective_weights_moved=1),
        made_run("Still", 0, None, objective_weights_moved=0),
    ).notes)
    assert "1 of 1 seeds of Still trained nothing" in notes
    assert "Adam trained nothing" not in notes


def test_two_seeds_that_get_there_and_one_that_does_not_are_a_median():
    summary = verdict_of({"Muon": [190, 195, None]}).summaries.iloc[0]
    assert (summary["median"], summary["reached"]) == (195, 2)


def test_two_problems_are_never_laid_over_each_other():
    results = pd.concat([
        made_results({"Adam": [250]}, dataset="One"),
        made_results({"Adam": [150]}, dataset="Other"),
    ])
    evaluations = table.plain(results)
    assert [dataset for dataset, _ in problem_names(evaluations).values()] == [
        "One", "Other"
    ]


def test_different_targets_do_not_compare():
    with pytest.raises(ValueError, match=r"targets, 2\.4 and 2\.5"):
        verdict_of(
            {"Adam": [250]}, made_results({"Muon": [200]}, target=2.4)
        )


def test_clear_difference_is_stated_with_its_test():
    found = verdict_of({
        "Adam": [3251.2, 3243.1, 3262.5], "Muon": [3218.3, 3211.9, 3226.4],
    }, num_steps=3500)
    assert found.baseline == "Adam"
    # The worked example: -33.4 steps of 3252.3, and the paired interval
    # -39.6 to -27.2.
    assert found.sentences == [
        "Muon reaches 2.5 in 1.0 % fewer steps than Adam (95 % CI 0.8 to 1.2; "
        "3 of 3 seeds each within 3500 steps, paired t, p = 0.0017). The "
        "seeds of the two do not overlap. In seconds: 1.0 % fewer (95 % CI "
        "0.8 to 1.2)."
    ]
    assert any("cannot reach .05 (.25 paired, .1 unpaired)" in note
               for note in found.notes)


def test_slower_solver_is_slower_in_words():
    sentence, = verdict_of({
        "Adam": [100, 101, 102], "SGD": [250, 255, 251],
        }).sentences
    assert "SGD reaches 2.5 in 2.495 times as many steps as Adam (95 % CI " \
        in sentence


def test_unclear_difference_names_the_seeds_it_would_take():
    found = verdict_of({"SOAP": [196, 199, 193], "Muon": [199, 193, 205]},
                       baseline="SOAP")
    assert "Muon and SOAP are not distinguishable" in found.sentences[0]
    # By hand: the mean log ratio is 0.0150, its standard error 0.0263.
    assert "1.5 % more steps (95 % CI 9.3 % fewer to 13.6 % more" in \
        found.sentences[0]
    n = found.comparisons["Muon"].seeds_needed
    assert f"About {n} seeds each would be needed" in found.sentences[0]
    assert "equal" not in " ".join(found.sentences)


def test_one_seed_is_called_one_seed():
    found = verdict_of({"Adam": [250], "Muon": [200]})
    assert found.sentences == [
        "Muon: 200.0 steps (one seed); Adam: 250.0 steps (one seed). With "
        "one seed there is no verdict: train three or more."
    ]
    ratio = found.comparisons["Muon"].ratio
    assert ratio.value == pytest.approx(0.8) and math.isnan(ratio.low)


def test_one_seed_that_never_gets_there_is_called_one_seed():
    sentence, = verdict_of({"Adam": [None], "Muon": [None]}).sentences
    assert sentence.startswith(
        "Neither Muon nor Adam reaches 2.5 (one seed each within 300 steps), "
        "so steps to it cannot be compared. With one seed there is no verdict"
    )


def test_two_seeds_are_two_numbers():
    found = verdict_of({"Adam": [250, 260], "Muon": [200, None]})
    assert found.sentences == [
        "Muon: 200.0 steps and not within 300 steps (two seeds); Adam: 250.0 "
        "steps and 260.0 steps (two seeds). With two seeds there is no "
        "verdict: train three or more."
    ]
    assert math.isnan(found.comparisons["Muon"].p)
    found = verdict_of({"Adam": [250, 260], "Muon": [None, None]})
    assert found.sentences[0].startswith(
        "Muon missed the target in both seeds (trained for 300 steps); Adam: "
    )


def test_the_more_comparisons_the_less_is_a_difference():
    pair = {"Adam": [250, 251, 252.5], "Muon": [242, 240, 245]}
    alone = verdict_of(pair).comparisons["Muon"]
    others = {f"Other {i}": [250, 251.5, 252 + i] for i in range(9)}
    among = verdict_of(pair | others)
    muon = among.comparisons["Muon"]
    assert muon.p == alone.p == alone.adjusted_p < 0.05
    assert muon.adjusted_p > 0.05
    assert muon.seeds_needed > alone.seeds_needed
    assert "adjusted for 10 comparisons" in among.notes[0]
    sentence, = [s for s in among.sentences if s.startswith("Muon")]
    assert "not distinguishable" in sentence


def test_repetitions_are_matched_by_number_not_by_position():
    adam = made_results({"Adam": [250, 270, 290]})
    muon = made_results({"Muon": [201, 221, 242]})
    straight = verdict_of(adam, muon)
    shuffled = verdict_of(adam, muon[::-1])
    assert straight.sentences == shuffled.sentences
    assert straight.comparisons["Muon"].pairs == 3


def test_repetitions_of_other_seeds_are_not_paired():
    compared = verdict_of(
        {"Adam": [250, 270, 290]},
        made_results({"Muon": [201, 221, 242]}, base_seed=1),
    ).comparisons["Muon"]
    assert (compared.pairs, compared.test) == (0, "Welch's t")


def test_pairs_are_the_seeds_that_both_have():
    found = verdict_of({"Adam": [250, 270, 290, 280, 260],
                        "Muon": [201, 222, 242]})
    assert found.comparisons["Muon"].pairs == 3
    assert "paired t of the 3 seeds they share" in found.sentences[0]
    assert "3 of 3 seeds against 5 of 5" in found.sentences[0]


def test_censored_seeds_are_compared_by_logrank():
    found = verdict_of({"Adam": [280, 290, None, None, None],
                        "Muon": [200, 210, 205, 220, 215]})
    muon = found.comparisons["Muon"]
    assert muon.test == "permuted log-rank"
    assert muon.p == pytest.approx(2 / 252)
    assert math.isnan(muon.ratio.value)
    assert (
        "Muon reaches 2.5 sooner than Adam (5 of 5 seeds against 2 of 5 "
        "within 300 steps; permuted log-rank, p = 0.0079)."
    ) in found.sentences[0]
    # Means up to 300: 210 and (280 + 290 + 3 * 300) / 5.
    assert "needs on average 84 fewer" in found.sentences[0]
    assert "a rough interval" in found.sentences[0]


def test_worked_example_with_censored_seeds_is_no_difference():
    found = verdict_of(
        {"Adam": [250, 270, 290, None, None]},
        made_results({"Muon": [250, 270, 290, 330, 360]}, num_steps=400),
    )
    assert found.comparisons["Muon"].p == 1
    assert "not distinguishable" in found.sentences[0]
    assert found.summaries["median"].tolist() == [290, 290]
    assert any("Horizons differ (Adam 300, Muon 400 steps)" in note
               for note in found.notes)


def test_three_censored_seeds_get_no_test():
    found = verdict_of({"Adam": [None, None, None], "Muon": [200, 210, 220]})
    assert found.sentences == [
        "Muon and Adam: 3 of 3 seeds against 0 of 3 within 300 steps. Too few "
        "seeds to test (smallest possible p: 0.1)."
    ]


def test_solvers_that_never_get_there_compare_by_their_last_loss():
    found = verdict_of(*(
        made_run(solver, repetition, None, final_loss=loss)
        for solver, losses in [
            ("Adam", [2.61, 2.62, 2.63]), ("Muon", [2.6, 2.611, 2.62]),
        ] for repetition, loss in enumerate(losses)
    ))
    assert "Neither Muon nor Adam reaches 2.5 (0 of 3 seeds each within 300 " \
        "steps)" in found.sentences[0]
    assert "At step 300 the loss of Muon is 0.0097 below that of Adam" in \
        found.sentences[0]
    assert math.isnan(found.comparisons["Muon"].ratio.value)


def test_losses_of_different_horizons_are_not_compared():
    found = verdict_of(
        {"Adam": [None] * 3},
        made_results({"Muon": [None] * 3}, num_steps=200),
    )
    assert "Final losses are not compared" in found.sentences[0]
    assert math.isnan(found.comparisons["Muon"].loss.value)


def test_runs_beyond_the_target_have_the_same_steps_and_a_loss_besides():
    steps = {"Adam": [250, 255, 262], "Muon": [200, 207, 211]}
    stopped = verdict_of(steps).comparisons["Muon"]
    trained_on = verdict_of(*(
        made_run(
            solver, repetition, value,
            final_loss=2.45 - 0.02 * i + 0.001 * repetition ** (1 + i),
        ) for i, (solver, values) in enumerate(steps.items())
        for repetition, value in enumerate(values)
    )).comparisons["Muon"]
    assert trained_on.ratio == stopped.ratio
    assert math.isnan(stopped.loss.value)
    assert trained_on.loss.value == pytest.approx(-0.0193, abs=1e-4)


def test_public_tracks_rule_stands_beside_a_t_test():
    def sentences(target):
        return verdict_of(*(
            made_run("Muon", repetition, 3200, num_steps=3300, target=target,
                     final_loss=loss)
            for repetition, loss in enumerate([3.2769, 3.2785, 3.2761])
        )).sentences
    # (3.28 - 3.27717) * sqrt(3)
    assert "Muon, public track's rule at step 3300: (3.28 - mean) * sqrt(n) " \
        "= 0.0049, which passes 0.004 (n = 3; t-test" in sentences(3.28)[-1]
    assert "track" not in " ".join(sentences(3.3))
    # Runs that ended at the target were not all judged at one step.
    found = verdict_of({"Muon": [3200, 3210, 3190]}, target=3.28,
                       num_steps=3300)
    assert "track" not in " ".join(found.sentences)


@pytest.mark.parametrize("change, word", [
    ({"objective_device": "NVIDIA H100"}, "device cpu and NVIDIA H100"),
    ({"objective_num_threads": 1}, "threads 2 and 1"),
    ({"objective_dtype": "bfloat16"}, "dtype float32 and bfloat16"),
    ({"system-processor": "Another"}, "processor A processor and Another"),
    ({"run_date": "2026-11-26T12:00:00"}, "more than one command"),
])
def test_seconds_are_withheld_between_conditions(change, word):
    steps = {"Adam": [250, 255, 262], "Muon": [200, 207, 211]}
    assert "In seconds" in verdict_of(steps).sentences[0]
    results = made_results(steps)
    muon = results["solver_name"].str.startswith("Muon")
    for column, value in change.items():
        results.loc[muon, column] = value
    found = verdict_of(results)
    assert "In seconds" not in found.sentences[0]
    note, = [n for n in found.notes if n.startswith("Seconds and ms")]
    assert word in note
    assert math.isnan(found.comparisons["Muon"].seconds.value)


def test_seconds_of_runs_trained_side_by_side_are_withheld():
    def runs(start):
        adam = made_run("Adam", 0, 250)
        muon = made_run("Muon", 0, 200)
        for rows, first in [(adam, 0), (muon, start)]:
            for row in rows:
                row["objective_wall_time"] = first + row["time"]
        return runs_of(pd.DataFrame(adam + muon))
    assert comparable_seconds(runs(start=2.6)) == []
    assert comparable_seconds(runs(start=1.0)) == [
        "runs trained side by side"
    ]


def test_several_settings_of_a_solver_are_called_a_choice():
    notes = verdict_of(*(
        made_results({"Adam": [250, 251, 260]},
                     parameters={"learning_rate": rate})
        for rate in (0.01, 0.003)
    )).notes
    assert any("Adam has 2 settings" in note for note in notes)


def test_sources_of_published_settings_are_named():
    steps = [250, 251, 260]
    notes = verdict_of(
        made_results({"AdamW": steps, "Muon": steps},
                     objective_settings_source="A paper, table 2"),
        made_results({"SGD": steps}, objective_settings_source=""),
    ).notes
    assert "Settings of AdamW and Muon: A paper, table 2." in notes
    assert not any("SGD" in note for note in notes)


def test_run_cut_short_is_censored_where_it_was_cut():
    rows = made_run("Adam", 0, None, num_steps=300)
    for row in rows:
        row["objective_stop_reason"] = "timeout"
    rows[-1]["objective_step"] = 210
    runs = runs_of(pd.DataFrame(rows))
    assert runs["trained_to"].tolist() == [210]
    assert any("stopped by timeout at step 210" in note
               for note in verdict(runs).notes)


def test_baseline_is_adam_or_the_one_named():
    rows = verdict_of({"SGD": [250], "Adam": [200], "Muon": [220]}).summaries
    assert choose_baseline(rows) == "Adam"
    assert choose_baseline(rows, "sgd") == "SGD"
    assert choose_baseline(rows[rows["label"] != "Adam"]) == "Muon"
    with pytest.raises(ValueError, match="'Adamm' .* Adam, Muon, SGD"):
        choose_baseline(rows, "Adamm")


def test_baseline_of_several_settings_is_the_best():
    rows = verdict_of(*(
        made_results({"Adam": [steps] * 3}, parameters={"learning_rate": rate})
        for rate, steps in [(0.01, 260), (0.003, 250), (0.001, None)]
    )).summaries
    assert rows["label"].tolist() == [
        "Adam lr=0.003", "Adam lr=0.01", "Adam lr=0.001"
    ]
    assert choose_baseline(rows, "Adam") == "Adam lr=0.003"
    assert choose_baseline(rows, "adam lr=0.01") == "Adam lr=0.01"
