import csv
import io
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from benchopt.utils.run_context import RunContext

from benchmark_utils.console import run_summary
from benchmark_utils.report import __main__ as report
from docs import ROOT, Clone, code_blocks
from made_results import made_results, made_run

STEPS = {
    "Adam": [295, 291, 299], "Muon": [199, 205, 193], "SGD": [None] * 3,
}


@pytest.fixture
def file_of(tmp_path):
    """file_of(*frames): a file of results."""
    def write(*frames, name="made"):
        path = tmp_path / f"{name}.parquet"
        pd.concat(frames).to_parquet(path)
        return path
    return write


@pytest.fixture
def results(file_of):
    """A file of three solvers, three seeds each."""
    return file_of(made_results(STEPS))


@pytest.fixture
def printed(capsys):
    """printed(*arguments): what the command prints."""
    def run(*arguments):
        report.main([str(argument) for argument in arguments])
        return capsys.readouterr().out
    return run


def test_report_is_a_row_per_solver_then_the_verdict(results, printed):
    text = printed(results)
    table, rest = text.split("\nVerdict\n")
    verdict, notes = rest.split("\nNotes\n")
    header, *rows = [
        line.split("  ") for line in table.splitlines() if "  " in line
    ]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    # By hand: the mean of three log ratios is -0.3939, sd 0.0437.
    assert rows == [
        ["Muon", "3 of 3", "199.0 \u00b1 6.0", "2.4990", "10", "402",
         "0.674 (0.605 to 0.752)"],
        ["Adam", "3 of 3", "295.0 \u00b1 4.0", "2.4990", "10", "403", "1"],
        ["SGD", "0 of 3", "> 300", "2.6000", "10", "403", "-"],
    ]
    # The digits of the table.
    assert verdict.startswith(
        "- Muon reaches 2.5 in 32.6 % fewer steps than Adam (95 % CI 24.8 to "
        "39.5;"
    )
    assert "how carefully each solver was tuned" in notes


def test_report_fits_the_terminal(file_of, printed):
    lines = printed(file_of(*(
        made_results(
            {"Schedule-free AdamW": [steps] * 3 + [steps + 5, None]},
            parameters={"learning_rate": rate, "beta1": 0.9 + rate},
        ) for rate, steps in [(0.003, 251.25), (0.001, 271.5), (0.01, 222)]
    ))).splitlines()
    assert max(map(len, lines)) <= 100
    # Long labels are whole.
    assert "Schedule-free AdamW lr=0.003 beta1=0.903" in lines


def test_every_format_has_every_solver(results, printed):
    for format in report.FORMATS:
        text = printed(results, "--format", format)
        assert all(solver in text for solver in STEPS)
    markdown = printed(results, "--format", "markdown").splitlines()
    rows = [line for line in markdown if line.startswith("|")]
    assert len(rows) == 5 and len({row.count("|") for row in rows}) == 1
    latex = printed(results, "--format", "latex")
    assert r"Muon & 3 of 3 & 199.0 $\pm$ 6.0 &" in latex
    assert r"ratio (95 \% CI) \\" in latex


def test_csv_has_the_numbers_unrounded(results, printed):
    rows = {
        row["label"]: row for row in csv.DictReader(io.StringIO(
            printed(results, "--format", "csv")
        ))
    }
    assert float(rows["Muon"]["mean"]) == 199
    assert float(rows["Muon"]["ratio"]) == pytest.approx(
        (199 * 205 * 193 / (295 * 291 * 299)) ** (1 / 3), rel=1e-12
    )
    assert rows["SGD"]["mean"] == rows["Adam"]["ratio"] == ""


def test_newest_file_is_read_without_arguments(
        results, file_of, printed, monkeypatch):
    os.utime(file_of(made_results({"Lion": [250]}), name="older"), (0, 0))
    monkeypatch.setattr(report, "OUTPUTS", results.parent)
    assert "Muon" in printed() and "Lion" not in printed()


def test_several_files_are_one_table(results, file_of, printed):
    other = file_of(made_results({"Lion": [250, 255, 262]}), name="other")
    text = printed(results, other)
    assert "Lion reaches 2.5 in 13.3 % fewer steps than Adam" in " ".join(
        text.split()
    )
    # Two files are two commands.
    assert "Seconds and ms per step are not comparable" in text


def test_newest_of_two_results_of_a_run_counts(results, file_of, capsys):
    newer = file_of(made_results(
        {"Muon": [100, 101, 102]}, run_date="2026-12-01T00:00:00"
    ), name="a")
    report.main([str(newer), str(results)])
    out, err = capsys.readouterr()
    assert "101.0" in out and "199.0" not in out
    assert err == (
        f"Results: {newer}, {results}\n"
        "3 runs appear more than once in the results: the newest of each "
        "counts.\n"
    )


def test_runs_that_differ_in_a_switch_are_one(file_of, printed):
    """With and without ``log=csv``, which is not in the problem's name: the
    evaluations of the two must not be taken for those of one."""
    first, second = (
        made_results(STEPS, p_obj_log=log, ms_per_step=ms)
        for log, ms in [(None, 10.0), ("csv", 20.0)]
    )
    both = pd.concat([first, second]).sort_values("stop_val", kind="stable")
    assert printed(file_of(both)) == printed(file_of(second, name="alone"))


def test_runs_that_cannot_be_told_apart_are_refused(file_of):
    path = file_of(*(
        made_results({"Mine": [steps]}) for steps in (250, 260)
    ))
    with pytest.raises(SystemExit, match="two runs of Mine.* different name"):
        report.main([str(path)])


def test_every_problem_has_a_table_of_its_own(file_of, printed):
    text = printed(file_of(
        made_results(STEPS, dataset="One"),
        made_results(STEPS, dataset="Other", target=2.0),
    ))
    assert text.index("One\n") < text.index("loss of 2.5 nats") < text.index(
        "Other\n") < text.index("loss of 2 nats")
    assert text.count("Verdict") == 2


def test_report_is_written_to_a_file(results, printed):
    target = results.with_name("verdict.md")
    assert printed(results, "--format", "markdown", "--output", target) == ""
    assert "| Muon | 3 of 3 |" in target.read_text(encoding="utf-8")
    assert sorted(path.name for path in results.parent.iterdir()) == [
        "made.parquet", "verdict.md"
    ]


def test_diverged_seed_is_seen_in_the_table(file_of, printed):
    rows = made_run("Adam", 0, None, diverged_at=20)
    for repetition in (1, 2):
        rows += made_run("Adam", repetition, 250)
    text = printed(file_of(pd.DataFrame(rows)))
    assert "2 of 3   median 250" in text and "1 diverged" in text


@pytest.mark.parametrize("arguments, message", [
    (["{folder}/none.parquet"], "There is no file {folder}/none.parquet."),
    (["{folder}/notes.txt"], "{folder}/notes.txt is not a file of results"),
    (["{folder}/other.parquet"], "other.parquet is not a file of "
     "results of this benchmark: it lacks 16 required columns, such as "
     "dataset."),
    (["{folder}/none.parquet", "--html"], "no file {folder}/none.parquet."),
    (["{folder}"], "{folder} is not a file of results of this benchmark: it "
     "is a folder."),
    (["{folder}/rowless.parquet"], "it holds no evaluations."),
    (["{folder}/made.parquet", "--html"], "`benchopt plot . -f FILE"),
    (["{folder}/made.parquet", "--figures", "{folder}/notes.txt"],
     "--figures {folder}/notes.txt is not a folder."),
    (["{folder}/made.parquet", "--output", "{folder}/notes.txt"],
     "{folder}/notes.txt already exists"),
    (["{folder}/made.parquet", "--baseline", "Adamm"],
     "baseline 'Adamm' is not in the results: take one of Adam, Muon, SGD."),
    (["{folder}/made.parquet", "--output", "{folder}/no/x.md"],
     "there is no folder {folder}/no."),
    ([], "There are no results in {folder}/empty"),
])
def test_errors_are_one_sentence(
        results, monkeypatch, capsys, arguments, message):
    folder = results.parent
    (folder / "notes.txt").write_text("not results")
    (folder / "empty").mkdir()
    pd.read_parquet(results)[:0].to_parquet(folder / "rowless.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(folder / "other.parquet")
    monkeypatch.setattr(report, "OUTPUTS", folder / "empty")
    with pytest.raises(SystemExit) as caught:
        report.main([text.format(folder=folder) for text in arguments])
    error = caught.value.code
    assert message.format(folder=folder) in error
    assert "\n" not in error
    # Nothing was reported, and nothing written over.
    assert capsys.readouterr().out == ""
    assert (folder / "notes.txt").read_text() == "not results"


def test_the_report_of_new_results_alone_is_named(
        tmp_path, monkeypatch, capsys):
    path = tmp_path / "outputs" / "two words.parquet"
    path.parent.mkdir()
    path.touch()
    # Another command's.
    (path.parent / "three words.parquet").touch()
    monkeypatch.setattr(run_summary, "_results", None)
    run_summary.set_results_path(RunContext(path.with_suffix("")))
    run_summary.set_results_path(None)
    monkeypatch.chdir(tmp_path)
    run_summary.print_report_command(since=path.stat().st_mtime + 1)
    assert capsys.readouterr().out == ""
    run_summary.print_report_command(since=path.stat().st_mtime)
    assert capsys.readouterr().out == (
        "\nThe verdict: python -m benchmark_utils.report "
        "'outputs/two words.parquet'\n"
    )


@pytest.mark.slow
def test_another_machine_gives_the_same_verdict(results, printed, tmp_path):
    """From the file of results alone, without what trained them."""
    here = printed(results)
    folder = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "benchmark_utils", folder / "benchmark_utils")
    moved = shutil.move(results, folder / "another name.parquet")
    for package in ("torch", "benchopt", "tqdm"):
        (folder / f"{package}.py").write_text("raise ImportError")
    there = subprocess.run(
        [sys.executable, "-m", "benchmark_utils.report", moved], cwd=folder,
        check=True, text=True, capture_output=True, env=os.environ | {
            "PYTHONPATH": "", "PYTHONHASHSEED": "1", "PYTHONUTF8": "1",
        },
    )
    assert there.stdout == here
    assert there.stderr == f"Results: {moved}\n"


@pytest.mark.slow
def test_real_results_are_reported(run, tmp_path):
    """The report agrees with the rows of the runs."""
    frame = run(
        {"AdamW": {"num_steps": 10}, "SGD": {"num_steps": 10}},
        objective={"target": 4.14}, n_repetitions=3,
    )
    table = tmp_path / "table.csv"
    report.main([
        str(tmp_path / "results.parquet"), "--format", "csv", "--output",
        str(table),
    ])
    for row in csv.DictReader(io.StringIO(table.read_text())):
        runs = frame[frame["solver_name"].str.startswith(row["label"])]
        steps = runs.groupby("idx_rep")["steps_to_target"].first()
        assert int(row["n"]) == 3
        assert int(row["reached"]) == (steps < float("inf")).sum()
        if row["mean"]:
            assert float(row["mean"]) == pytest.approx(steps.mean())
        ends = runs.sort_values("step").groupby("idx_rep").last()
        assert float(row["val_loss"]) == pytest.approx(
            ends["value"].mean()
        )


@pytest.mark.slow
def test_commands_of_the_page_run(tmp_path):
    clone = Clone(tmp_path / "clone")
    train_and_report, others = code_blocks("docs/evidence.rst", "bash")
    for command in (train_and_report + "\n" + others).splitlines():
        output = clone.run(
            command + (" --no-display" * command.startswith("benchopt"))
        )
        if command.endswith("report"):
            verdict = output.partition("\nVerdict\n")[2]
            assert "SGD" in verdict and "AdamW" in verdict
    markdown = (clone.folder / "verdict.md").read_text()
    assert re.search(r"^\| AdamW \| \d of 3 \|", markdown, re.M)
    assert (clone.folder / "verdict.csv").read_text().startswith("dataset,")
