"""Every command of the README does what the README says."""
import shutil
import threading

import numpy as np
import pytest

from docs import ROOT, Clone, code_blocks, write_empty_shards

PAGE = "README.rst"


def commands():
    """The commands, but for the installation that precedes some of them."""
    for block in code_blocks(PAGE, "bash"):
        for line in block.splitlines():
            for command in line.split(" && "):
                if not command.startswith("pip install"):
                    yield command


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_the_commands_are_those_tested_here():
    assert list(commands()) == [
        QUICKSTART, REPORT, "pytest -n auto", CHOOSE, PREPARE, SPEEDRUN,
        COLLECT, *SELECT, ADD, TEXT, PREPARE_SOME, FIGURES,
    ]


def test_ci_runs_the_test_command_of_the_readme():
    command = next(
        block for block in code_blocks(PAGE, "bash")
        if block.endswith("pytest -n auto")
    )
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(command)


QUICKSTART = "benchopt run . --config configs/quickstart.yml --no-display"
REPORT = "python -m benchmark_utils.report"


@pytest.mark.slow
def test_the_quick_start_ends_in_a_verdict(clone):
    """Three seeds of each; the two that adapt get there, SGD does not."""
    clone.run(QUICKSTART)
    frame = clone.results()
    last = frame.groupby(["solver_name", "idx_rep"]).last()
    reasons = last.objective_stop_reason.groupby(level=0).unique()
    assert {
        name.partition("[")[0]: list(values)
        for name, values in reasons.items()
    } == {"AdamW": ["target"], "Muon": ["target"], "SGD": ["horizon"]}
    assert len(last) == 9
    output = " ".join(clone.run(REPORT).split())
    assert "Muon reaches 2.335" in output and "fewer steps" in output
    assert "3 of 3 seeds" in output and "0 of 3" in output
    report, = (clone.folder / "outputs").glob("*_run_*.html")
    assert "Steps to target" in report.read_text()
    clone.run(FIGURES)
    assert "plotly.js v" in report.read_text()
    assert list((clone.folder / "figures").glob("loss_against_*.pdf"))


SELECT = [
    "python -m benchmark_utils.harness.select configs/smoke.yml AdamW "
    "solvers/lion.py -o log=csv --output mine.yml",
    "benchopt run . --config mine.yml",
]


def test_solvers_of_a_configuration_keep_their_settings(clone):
    pytest.importorskip("pytorch_optimizer")
    select, run = SELECT
    clone.run(select)
    clone.run(run + " --no-display")
    last = clone.results().groupby("p_solver_learning_rate").last()
    assert 0.01 in last.index and len(last) == 2
    assert (last.stop_val == 60).all()
    assert list((clone.folder / "outputs").rglob("evaluations.csv"))


FIGURES = "python -m benchmark_utils.report --figures figures --html"


CHOOSE = (
    'benchopt run . --config configs/smoke.yml -s "AdamW[learning_rate='
    '[0.003,0.01],num_steps=60,warmup_steps=5]" -r 2'
)


def test_solvers_and_settings_are_chosen_on_the_command_line(clone):
    *_, empty, last = clone.run(CHOOSE + " --no-display").splitlines()
    frame = clone.results()
    # The last line is the next command.
    hint, command = last.split(": ")
    assert (empty, hint) == ("", "The verdict")
    assert "\nVerdict\n" in clone.run(command)
    runs = frame.groupby(["p_solver_learning_rate", "idx_rep"]).last()
    assert runs.index.tolist() == [
        (0.003, 0), (0.003, 1), (0.01, 0), (0.01, 1)
    ]
    assert (runs.stop_val == 60).all()


PREPARE = "benchopt prepare . --config configs/speedrun.yml"
SPEEDRUN = "benchopt run . --config configs/speedrun.yml"


PREPARE_SOME = 'benchopt prepare . -d "FineWeb[num_train_shards=18]"'


def test_speedrun_is_set_up_with_its_104_shards(clone, tmp_path):
    """Without the training: the shards are there, but hold only zeros."""
    folder = write_empty_shards(tmp_path)
    there = {"BENCHOPT_DATA_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert "done" in clone.run(PREPARE, **there)
    first = folder / "fineweb_val_000000.bin"
    first.rename(first.with_suffix(".away"))
    # benchopt has cached that all was prepared; it is not any more.
    assert "1 of 104 file(s) (fineweb_val_000000.bin)" in clone.run(
        PREPARE, returncode=1, **there
    )
    first.with_suffix(".away").rename(first)
    assert "done" in clone.run(PREPARE_SOME, **there)
    output = clone.run(SPEEDRUN + " --collect", returncode=1, **there)
    assert "num_train_shards=103" in output
    assert "nanoGPT[gpt2]" in output and "num_steps=19485" in output
    assert "not run yet" in output


COLLECT = "benchopt run . --config configs/smoke.yml --collect"


def test_what_has_finished_survives_a_killed_run(clone):
    solvers = (
        ' --no-display -s "AdamW[num_steps=60,warmup_steps=5]"'
        ' -s "SGD[num_steps=190,warmup_steps=5,learning_rate=[0.1,0.2,0.3]]"'
    )
    run = COLLECT.removesuffix(" --collect") + solvers
    with clone.start(run) as process:
        timer = threading.Timer(600, process.kill)
        timer.start()
        for line in process.stdout:
            if "AdamW" in line and "done" in line:
                break
        process.kill()
        timer.cancel()
    assert not list((clone.folder / "outputs").iterdir())

    clone.run(COLLECT + solvers)
    collected = clone.results()
    names = collected.solver_name.unique()
    assert names[0].startswith("AdamW") and len(names) < 4
    shutil.rmtree(clone.folder / "outputs")

    clone.run(run)
    complete = clone.results()
    assert len(complete.solver_name.unique()) == 4
    finished = complete[complete.solver_name.isin(names)]
    # Seconds would differ if anything had been trained again.
    assert finished.time.tolist() == collected.time.tolist()


ADD = (
    'benchopt run . --config configs/smoke.yml -s "solvers/radam.py'
    '[num_steps=60,warmup_steps=5,learning_rate=0.03]" -s "AdamW[num_steps=60,'
    'warmup_steps=5,learning_rate=0.01]"'
)


def test_a_new_solver_is_one_short_file(clone):
    source, = code_blocks(PAGE, "python")
    assert len(source.splitlines()) < 40
    (clone.folder / "solvers" / "radam.py").write_text(source + "\n")
    clone.run(ADD + " --no-display")
    frame = clone.results()
    last = frame.groupby("p_solver_learning_rate").last()
    assert len(frame.solver_name.unique()) == 2
    assert (last.stop_val == 60).all()


TEXT = (
    'benchopt run . -d Text -s "AdamW[num_steps=300,warmup_steps=30,'
    'learning_rate=0.003]" -o "nanoGPT[n_layer=2,n_head=4,n_embd=128,'
    "context_length=128,sequence_length=128,batch_size=16,val_tokens=32768,"
    'eval_every=50,target=2.8]" --no-timeout'
)


@pytest.mark.slow
def test_a_laptop_trains_on_real_text(clone):
    assert "vocabulary of 257" in clone.run(TEXT + " --no-display")
    losses = clone.results().objective_value
    # Less than equal probabilities give, because a tied head expects each
    # byte once more, and a library has many spaces in a row; how much less
    # depends on the version of Python.
    assert np.log(257) - 0.6 < losses.iloc[0] < np.log(257) + 0.1
    assert losses.iloc[-1] < 2.8
