"""The figures show the numbers of the results, and fit into their space."""
import copy
import functools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from benchopt.plotting.generate_html import plot_benchmark_html
from benchopt.plotting.helpers import update_plot_data_style
from benchopt.results import read_results, save_results
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmark_utils.analysis.table import plain
from benchmark_utils.report import __main__ as report
from benchmark_utils.report import figures
from benchmark_utils.report.page import carry_scripts
from docs import ROOT, Clone, code_blocks
from made_curves import CASES

CONFIG = yaml.safe_load((ROOT / "config.yml").read_text())
KINDS = CONFIG["plots"]


@pytest.fixture(scope="module")
def plot_data(bench):
    """plot_data(case): the data and options of benchopt's plots."""
    return functools.cache(
        lambda case: bench.get_plot_data(CASES[case], KINDS)
    )


@pytest.mark.parametrize("case", [
    case if case == "three" else pytest.param(case, marks=pytest.mark.slow)
    for case in CASES
])
def test_all_figures_of_benchopt_can_be_drawn(plot_data, case):
    """Lines of a title fit next to the menu at 1,280 pixels."""
    data, options = copy.deepcopy(plot_data(case))
    assert sorted(data) == sorted(KINDS)
    assert len(options["verdict"]["problem"]) == (
        2 if case == "two problems" else 1
    )
    json.dumps(update_plot_data_style(data, plotly=True))
    for kind, figures_of_kind in data.items():
        for figure in figures_of_kind.values():
            assert max(map(len, figure["title"].split("<br />"))) <= 100
            # A boxplot without boxes stops the page's script.
            assert figure["data"] or kind in ["sweep", "speed"]
            for trace in figure["data"] * (figure["type"] == "scatter"):
                assert len(trace["x"]) == len(trace["y"])
                assert len(trace["label"]) <= 40
                assert not np.isinf(trace["x"] + trace["y"]).any()


def test_the_views_of_the_page_exist(plot_data):
    _, options = plot_data("three")
    for view in CONFIG["plot_configs"].values():
        kind = view["plot_kind"]
        for name in view.keys() - {"plot_kind", "scale"}:
            assert view[name] in options[kind][name.removeprefix(f"{kind}_")]


@pytest.mark.slow
def test_curves_of_a_run_are_its_losses(run, bench, tmp_path):
    run({"AdamW": {}, "SGD": {"learning_rate": 1e6, "max_grad_norm": 0}},
        n_repetitions=2)
    frame = read_results(tmp_path / "results.parquet")
    assert np.isinf(frame.objective_value).any()
    data, _ = bench.get_plot_data(frame, ["validation_loss"])
    rows = frame[frame.solver_name.str.startswith("AdamW")].groupby("stop_val")
    for against, column in [
        ("steps", "objective_step"), ("tokens", "objective_tokens"),
        ("seconds", "time"),
    ]:
        line, _, sgd, *_, target = data["validation_loss"][
            f"validation_loss_{against}_the whole run_median and range_"
            "Simulated"
        ]["data"]
        assert line["label"] == "AdamW"
        assert line["x"] == pytest.approx(rows[column].mean().tolist())
        assert line["y"] == pytest.approx(
            rows.objective_value.median().tolist()
        )
        assert line["y_low"] == rows.objective_value.min().tolist()
        assert line["y_high"] == rows.objective_value.max().tolist()
        assert sgd["label"] == "SGD (2 of 2 diverged)"
        assert target["y"] == [frame.objective_target[0]] * 2


def test_every_seed_ends_in_a_mark(plot_data):
    """Marks tell seeds apart, and solvers by more than a color."""
    data, _ = plot_data("three")
    drawn = data["validation_loss"][
        "validation_loss_steps_near the target_every seed_Simulated"
    ]["data"]
    marks = [
        np.array(trace["x"])[np.isfinite(trace["y"])]
        for trace in drawn if trace["label"] == "Muon"
    ][1]
    frame = CASES["three"]
    muon = frame[frame["solver_name"].str.startswith("Muon")]
    assert marks.tolist() == muon.groupby("idx_rep").stop_val.max().tolist()


@pytest.mark.parametrize("lengths, columns", [
    ([5] * 4, 4), ([5] * 6, 3), ([22] * 18, 2), ([70] * 3, 1),
    ([8] * 6 + [19] * 6 + [22] * 6, 3),
])
def test_legends_are_filled_evenly(lengths, columns):
    labels = ["x" * length for length in lengths]
    assert figures.legend_columns(labels) == columns


@pytest.mark.slow
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
    for path, content in zip(paths, contents, strict=True):
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
    plot_benchmark_html(path, bench, copy.deepcopy(CONFIG), display=False)
    return tmp_path / "benchmark_nanogpt_three.html"


@pytest.mark.slow
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
def test_a_browser_without_network_draws_every_figure(page, tmp_path):
    """Every tab, one after the other: the texts of its figure or table."""
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


@pytest.mark.slow
def test_commands_of_the_page_about_figures_run(tmp_path):
    draw, follow = code_blocks("docs/figures.rst", "bash")
    select, run = follow.splitlines()
    clone = Clone(tmp_path / "clone")
    clone.run(select)
    clone.run(run + " --no-display --output mine")
    output = clone.run(draw)
    assert "9 figures as PDF and PNG in figures" in output
    assert "needs no network" in output
    assert len(list((clone.folder / "figures").iterdir())) == 18
    page = clone.folder / "outputs" / "benchmark_nanogpt_mine.html"
    assert "plotly.js v" in page.read_text()
    assert list((clone.folder / "outputs").rglob("evaluations.csv"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_other_tools_read_the_file_of_a_run(
        package, run, tmp_path, monkeypatch):
    pytest.importorskip(package)
    source, = [
        block for block in code_blocks("docs/figures.rst", "python")
        if package in block
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    frame = run({"AdamW": {}}, {"log": "csv"},
                output_file=str(tmp_path / "outputs" / "results.parquet"))
    path, = tmp_path.rglob("evaluations.csv")
    exec(source, {})
    if package == "tensorboard":
        from tensorboard.backend.event_processing import event_accumulator
        events = event_accumulator.EventAccumulator(str(path.parent))
        events.Reload()
        values = [event.value for event in events.Scalars("val_loss")]
        assert values == pytest.approx(frame["value"].tolist())
    else:
        assert list(tmp_path.glob("wandb/offline-run-*"))


def test_a_wrong_baseline_leaves_no_figures(tmp_path):
    path = tmp_path / "three.parquet"
    save_results(CASES["three"], path)
    with pytest.raises(SystemExit, match="baseline 'Nobody'"):
        report.main([
            str(path), "--figures", str(tmp_path / "pdf"), "--baseline",
            "Nobody",
        ])
    assert not (tmp_path / "pdf").exists()
