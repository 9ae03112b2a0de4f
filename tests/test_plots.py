"""The report shows the numbers of the results."""
import numpy as np
import pandas as pd
import pytest
from benchopt.results import read_results


@pytest.mark.parametrize("against, column", [
    ("steps", "objective_step"), ("tokens", "objective_tokens"),
    ("seconds", "time"),
])
def test_curves_are_the_losses_of_the_results(
        run, bench, tmp_path, against, column):
    run({"AdamW": {}, "SGD": {"learning_rate": 1e6, "max_grad_norm": 0}},
        n_repetitions=2)
    df = read_results(tmp_path / "results.parquet")
    assert np.isinf(df.objective_value).any()
    dataset, objective = df.dataset_name[0], df.objective_name[0]
    plots, _ = bench.get_plot_data(df, ["validation_loss"])
    plot, = (
        plot for key, plot in plots["validation_loss"].items()
        if key.endswith(against)
    )
    adam, sgd, target = plot["data"]
    rows = df[df.solver_name == adam["label"]].groupby("stop_val")
    assert adam["x"] == rows[column].median().tolist()
    assert adam["y"] == rows.objective_value.median().tolist()
    assert adam["y_low"] == rows.objective_value.min().tolist()
    assert adam["y_high"] == rows.objective_value.max().tolist()
    assert max(sgd["y"]) < 12 and len(sgd["x"]) == len(sgd["y"])
    assert sgd["label"].endswith("(2 of 2 diverged)")
    assert target["y"] == [df.objective_target[0]] * 2
    assert objective in plot["title"] and dataset in plot["title"]


def test_a_repetition_that_has_ended_counts_with_its_last_loss(
        run, bench, tmp_path):
    """Otherwise the end of a curve would be the median of the slowest."""
    run({"AdamW": {}}, n_repetitions=4)
    df = read_results(tmp_path / "results.parquet")
    assert df.stop_val.unique().tolist() == [0, 5, 9, 10]
    first, second, *_ = (
        df[df.idx_rep == rep].objective_value.to_numpy() for rep in range(4)
    )
    # The first reached its target at step 9, the last diverged at step 5.
    df.loc[
        (df.idx_rep == 3) & (df.stop_val == 5),
        ["objective_value", "objective_diverged"],
    ] = np.inf, 1
    df = df[~(
        ((df.idx_rep == 0) & (df.stop_val > 9))
        | ((df.idx_rep == 3) & (df.stop_val > 5))
    )]
    plots, _ = bench.get_plot_data(df, ["validation_loss"])
    plot = next(iter(plots["validation_loss"].values()))
    curve = plot["data"][0]
    assert curve["label"].endswith("] (1 of 4 diverged)")
    third = df[df.idx_rep == 2].objective_value.to_numpy()
    assert len(curve["y"]) == 4
    assert curve["y"][-1] == np.median([first[2], second[3], third[3], np.inf])
    assert curve["y_low"][-1] == min(first[2], second[3], third[3])
    assert curve["y_high"][-1] == max(first[2], second[3], third[3])


def test_combinations_that_did_not_run_are_empty(run, bench, tmp_path):
    frames = []
    for name, change in [("a", {"margin": 0.2}), ("b", {"margin": 0.3})]:
        run(None, {"eval_every": 4 if name == "a" else 5}, change,
            output_file=str(tmp_path / f"{name}.parquet"))
        frames.append(read_results(tmp_path / f"{name}.parquet"))
    plots, _ = bench.get_plot_data(pd.concat(frames), ["validation_loss"])
    curves = [len(plot["data"]) for plot in plots["validation_loss"].values()]
    # Two datasets, two objectives, three axes; two pairs ran.
    assert sorted(curves) == 6 * [0] + 6 * [2]
