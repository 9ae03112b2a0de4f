"""The pictures show the numbers of the results, and fit where they go."""
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml
from benchopt.plotting.generate_html import plot_benchmark_html
from benchopt.plotting.helpers import update_plot_data_style
from benchopt.results import read_results, save_results
from docs import Clone, code_blocks
from made_curves import results
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmark_utils import figures, report
from benchmark_utils.page import carry_scripts
from benchmark_utils.results.curves import (
    highest_loss, median_curves, seed_curves, share_reached
)
from benchmark_utils.results.problems import problem_names
from benchmark_utils.results.savings import steps_saved
from benchmark_utils.results.sweeps import (
    at_the_edge, equal_times, sweep, swept_parameters
)
from benchmark_utils.results.table import one_problem, plain, problems, runs
from benchmark_utils.results.verdict import verdict
from conftest import ROOT

NAMES = (
    "Adafactor Adam AdamH AdEMAMix Lion MARS Muon MuonH NAdam NorMuon "
    "PSGD-Kron Schedule-free-AdamW Scion SGD Shampoo Signum SOAP"
).split()
THREE = {
    "Adam": {"steps": 150}, "Muon": {"steps": 100, "ms": 14},
    "SGD": {"steps": 900},
}
CASES = {
    "three": results(THREE),
    "one solver, one seed": results({"Adam": {"steps": 150}}, num_seeds=1),
    "seventeen, ten seeds": results({
        name: {"steps": 90 + 8 * index, "ms": 8 + index % 5}
        for index, name in enumerate(NAMES)
    }, num_seeds=10, num_steps=400),
    "all censored": results({"Adam": {"steps": 300}, "SGD": {"steps": 900}}),
    "one diverged": results({
        "Adam": {"steps": 150, "diverged": [1]},
        "SGD": {"steps": 400, "diverged": [0, 1, 2]},
    }),
    "a sweep": pd.concat([
        results({"Adam": {
            "steps": steps, "diverged": diverged,
            "parameters": {"learning_rate": rate, "weight_decay": 0.1},
        }}) for rate, steps, diverged in [
            (0.001, 180, []), (0.003, 120, []), (0.01, 160, [0]),
            (0.03, 150, [0, 1, 2]),
        ]
    ], ignore_index=True),
    "two problems": pd.concat([
        results(THREE, problem=f"Simulated[margin={margin}]")
        for margin in [0.1, 0.2]
    ], ignore_index=True),
}
KINDS = yaml.safe_load((ROOT / "config.yml").read_text())["plots"]


def problem(frame):
    """The evaluations of the only problem of benchopt's results."""
    evaluations = plain(frame)
    only, = problems(evaluations)
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
    assert dict(zip(censored["steps"], censored["share"])) == pytest.approx(
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


@pytest.mark.parametrize("case", CASES)
def test_all_pictures_of_benchopt_can_be_drawn(bench, case):
    """Lines of a title fit beside the menu at 1,280 pixels."""
    frame = CASES[case]
    data, options = bench.get_plot_data(frame, KINDS)
    assert sorted(data) == sorted(KINDS)
    assert len(options["verdict"]["problem"]) == (
        2 if case == "two problems" else 1
    )
    json.dumps(update_plot_data_style(data, plotly=True))
    drawn = [
        (kind, picture) for kind, pictures in data.items()
        for picture in pictures.values()
    ]
    for kind, picture in drawn:
        assert max(map(len, picture["title"].split("<br />"))) <= 100
        for trace in picture["data"]:
            if picture["type"] == "scatter":
                assert len(trace["x"]) == len(trace["y"])
                assert len(trace["label"]) <= 40
                assert not np.isinf(trace["x"] + trace["y"]).any()
        # A boxplot without boxes stops the page's script.
        assert picture["data"] or kind in ["sweep", "speed"]


def test_the_views_of_the_page_exist(bench):
    views = yaml.safe_load((ROOT / "config.yml").read_text())["plot_configs"]
    _, options = bench.get_plot_data(CASES["three"], KINDS)
    for view in views.values():
        kind = view.pop("plot_kind")
        view.pop("scale", None)
        for name, value in view.items():
            assert value in options[kind][name.removeprefix(f"{kind}_")]


def test_curves_of_a_run_are_its_losses(run, bench, tmp_path):
    run({"Adam": {}, "SGD": {"learning_rate": 1e6, "max_grad_norm": 0}},
        n_repetitions=2)
    frame = read_results(tmp_path / "results.parquet")
    assert np.isinf(frame.objective_value).any()
    data, _ = bench.get_plot_data(frame, ["validation_loss"])
    adam = frame[frame.solver_name.str.startswith("Adam")]
    for against, column in [
        ("steps", "objective_step"), ("tokens", "objective_tokens"),
        ("seconds", "time"),
    ]:
        key = (
            f"validation_loss_{against}_the whole run_median and range_"
            "Simulated"
        )
        line, _, sgd, *_, target = data["validation_loss"][key]["data"]
        rows = adam.groupby("stop_val")
        assert line["label"] == "Adam"
        assert line["x"] == pytest.approx(rows[column].mean().tolist())
        assert line["y"] == pytest.approx(
            rows.objective_value.median().tolist()
        )
        assert line["y_low"] == rows.objective_value.min().tolist()
        assert line["y_high"] == rows.objective_value.max().tolist()
        assert sgd["label"] == "SGD (2 of 2 diverged)"
        assert target["y"] == [frame.objective_target[0]] * 2


def test_problems_are_told_apart():
    evaluations = plain(CASES["two problems"])
    names = problem_names(evaluations)
    assert list(names) == ["Simulated margin=0.1", "Simulated margin=0.2"]
    assert list(names.values()) == problems(evaluations)
    assert list(problem_names(plain(CASES["three"]))) == ["Simulated"]


@pytest.mark.parametrize("case", CASES)
def test_figures_are_whole_at_the_width_of_a_column(
        case, tmp_path, monkeypatch):
    """Each is a file of its own, 3.4 inches wide, and all that is drawn is
    within it."""
    saved = []
    save = figures.Figure.savefig

    def spy(figure, path, **options):
        save(figure, path, **options)
        saved.append(figure)

    monkeypatch.setattr(figures.Figure, "savefig", spy)
    paths = figures.save_figures(plain(CASES[case]), tmp_path)
    count = 9 + 2 * (case == "a sweep")
    assert len(paths) == 2 * count * (2 if case == "two problems" else 1)
    contents = [path.read_bytes() for path in paths]
    assert len(set(contents)) == len(set(paths)) == len(paths)
    starts = {".pdf": b"%PDF", ".png": b"\x89PNG"}
    for path, content in zip(paths, contents):
        assert content.startswith(starts[path.suffix])
    for figure in saved[::2]:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert width == 3.4 and height < 5
        assert -0.02 < box.x0 and box.x1 < width + 0.02
        assert -0.02 < box.y0 and box.y1 < height + 0.02


@pytest.fixture
def page(bench, tmp_path, monkeypatch):
    """A page of three solvers, as benchopt writes it."""
    monkeypatch.setattr(bench, "get_output_folder", lambda: tmp_path)
    path = tmp_path / "three.parquet"
    save_results(CASES["three"], path)
    config = yaml.safe_load((ROOT / "config.yml").read_text())
    plot_benchmark_html(path, bench, config, display=False)
    return tmp_path / "benchmark_nanogpt_three.html"


def test_a_page_carries_its_scripts(page):
    before = page.read_text()
    assert "No table here? There is no network" in before
    carry_scripts(page)
    after = page.read_text()
    assert "cdn.plot.ly" in before and "plotly.js v" in after
    head, _, rest = after.partition("plotly.js v")
    assert not re.search(r'(src="|<link [^>]*href=")https?://', head)
    assert not re.search(r'<script src=', rest)
    carry_scripts(page)
    assert page.read_text() == after
    other = page.with_name("other.html")
    other.write_text("<html></html>")
    with pytest.raises(ValueError, match="not a page of results"):
        carry_scripts(other)
    assert other.read_text() == "<html></html>"
    with pytest.raises(FileNotFoundError, match="benchopt plot"):
        carry_scripts(page.with_name("none.html"))


BROWSER = next(filter(None, map(shutil.which, [
    "chromium", "chromium-browser", "google-chrome"
])), None)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_without_network_draws_every_picture(page, tmp_path):
    """Every tab, one after the other: the texts of its picture or table."""
    carry_scripts(page)
    html = page.read_text()
    page.write_text(html.replace("</body>", """<script>
    window.addEventListener('load', () => {
      const seen = [];
      document.querySelectorAll('#view-tabs span.view').forEach((tab) => {
        setConfig(tab);
        const title = document.querySelector('#table_container h2, .gtitle');
        seen.push([
          tab.textContent, title ? title.textContent : '',
          document.querySelectorAll('.gridjs-table tbody tr').length,
          document.querySelectorAll('.scatterlayer .trace').length,
          document.querySelectorAll('.boxlayer .trace').length,
        ]);
      });
      document.body.innerHTML = '<pre>' + JSON.stringify(seen) + '</pre>';
    });
    </script></body>"""))
    output = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
         "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         "--virtual-time-budget=5000", f"file://{page}"],
        capture_output=True, text=True, timeout=120,
    ).stdout
    seen = json.loads(re.search(r"<pre>(.*?)</pre>", output, re.S).group(1))
    assert [tab for tab, *_ in seen] == [
        "Verdict", "Loss", "Zoom", "Target", "Saved", "Sweep", "Speed"
    ]
    counts = {tab: numbers for tab, title, *numbers in seen}
    assert counts["Verdict"][0] == 3
    assert counts["Loss"][1] > 3 and counts["Zoom"][1] > 2
    assert counts["Target"][1] > 3 and counts["Speed"][1] > 2
    assert counts["Saved"][2] == 2


def test_the_page_says_how_pictures_are_had(tmp_path):
    command, = code_blocks("docs/pictures.rst", "bash")
    clone = Clone(tmp_path / "clone")
    clone.run(
        "benchopt run . --config configs/smoke.yml --no-display -n 100 "
        "--output mine"
    )
    said = clone.run(command)
    assert "18 figures in figures" in said and "needs no network" in said
    assert len(list((clone.folder / "figures").iterdir())) == 18
    page = clone.folder / "outputs" / "benchmark_nanogpt_mine.html"
    assert "plotly.js v" in page.read_text()


def test_a_wrong_baseline_leaves_no_figures(tmp_path):
    path = tmp_path / "three.parquet"
    save_results(CASES["three"], path)
    with pytest.raises(SystemExit, match="baseline 'Nobody'"):
        report.main([
            str(path), "--figures", str(tmp_path / "pdf"), "--baseline",
            "Nobody",
        ])
    assert not (tmp_path / "pdf").exists()
