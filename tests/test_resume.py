"""A killed run resumes, with the results of a run that was never killed."""
import os
import re
import shutil
import signal
import subprocess
import sys

import joblib
import pytest
import torch
from benchopt.benchmark import Benchmark
from safetensors import SafetensorError

from benchmark_utils.distributed import workers
from benchmark_utils.harness import resume
from benchmark_utils.models import weights
from benchmark_utils.models.named import make_model
from benchmark_utils.models.weights import save_weights
from benchmark_utils.training import checkpoints
from benchmark_utils.training.trainer import Trainer
from conftest import ROOT, tiny_runs
from killed_run import Runs, measured

SOLVER_FILES = sorted((ROOT / "solvers").glob("*.py"))


pytestmark = pytest.mark.slow
EVERY_3 = {"checkpoint_every": 3}


class Interrupted(Exception):
    pass


@pytest.fixture
def break_run(run, capsys):
    """``break_run(step, solvers, objective, ...)``: a run with a checkpoint
    every 3 steps that breaks in the middle of a step. Later runs do not."""
    train_step = Trainer.train_step

    def break_run(step, solvers=None, objective=None, **options):
        def broken_step(trainer, inputs, targets):
            if trainer.step == step:
                raise Interrupted("in the middle of a step")
            train_step(trainer, inputs, targets)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", broken_step)
            with pytest.raises(RuntimeError, match="Benchmark failed"):
                run(solvers, EVERY_3 | (objective or {}), **options)
        return capsys.readouterr().out

    return break_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of this test's checkpoints."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(resume, "get_data_path", lambda _: folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Measurements of a run that nothing interrupts."""
    return measured(tiny_runs(tmp_path_factory.mktemp("whole"))())


@pytest.mark.parametrize(
    "solver_file", SOLVER_FILES, ids=[file.stem for file in SOLVER_FILES]
)
def test_every_solver_resumes_to_the_bit(
        solver_file, run, break_run, folder, capsys):
    solver = {str(solver_file): {"num_steps": 16}}
    unbroken = run(solver)
    break_run(8, solver)
    break_run(14, solver)
    resumed = run(solver, EVERY_3)
    assert "Continues from step 12" in capsys.readouterr().out
    assert measured(resumed) == measured(unbroken)
    assert resumed.times_resumed.tolist() == [0, 0, 1, 2, 2]
    assert resumed.time.is_monotonic_increasing
    assert not list(folder.glob("*"))


def test_repetitions_and_other_settings_have_their_own(
        run, break_run, folder, capsys, monkeypatch):
    break_run(8, {"AdamW": {}, "SGD": {}}, n_repetitions=2)
    assert len(list(folder.glob("*/*/step_*6"))) == 4
    # Another learning rate, another seed, two other problems.
    run({"AdamW": {"learning_rate": 0.02}}, EVERY_3)
    with monkeypatch.context() as patch:
        patch.setattr(Benchmark, "seed", 3)
        run({"AdamW": {}}, EVERY_3)
    run({"AdamW": {}}, EVERY_3 | {"batch_size": 8})
    run({"AdamW": {}}, EVERY_3, dataset={"margin": 0.2})
    assert "Continues" not in capsys.readouterr().out
    resumed = run({"AdamW": {}, "SGD": {}}, EVERY_3, n_repetitions=2)
    assert capsys.readouterr().out.count("Continues from step 6") == 4
    assert measured(resumed) == measured(
        run({"AdamW": {}, "SGD": {}}, n_repetitions=2)
    )


def test_it_can_be_switched_off(run, whole, break_run, folder, capsys):
    break_run(8, objective={"checkpoint_every": 0})
    assert not list(folder.glob("*"))
    break_run(8)
    fresh = run(objective=EVERY_3 | {"resume": False})
    assert "Continues" not in capsys.readouterr().out
    assert measured(fresh) == whole


def test_short_runs_write_none_by_themselves(run, folder, monkeypatch):
    def no_saving(*_):
        raise AssertionError("a checkpoint was written")

    monkeypatch.setattr(checkpoints, "save", no_saving)
    run(objective={"checkpoint_every": "auto"})
    run(objective={"checkpoint_every": "'5min'"})


def test_minutes_are_minutes_and_the_share_of_time_is_bounded(
        run, folder, monkeypatch):
    """With a fake clock: a step takes 10 s and a checkpoint 1 s."""
    now, saved = [0.0], []
    train_step = Trainer.train_step

    def slow_step(trainer, inputs, targets):
        train_step(trainer, inputs, targets)
        now[0] += 10

    def save(folder, step, state):
        saved.append(step)
        now[0] += 1

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    solver = {"AdamW": {"num_steps": 70}}
    run(solver, {"checkpoint_every": "'2min'"})
    assert saved == [12, 24, 36, 48, 60]
    saved.clear()
    run(solver, {"checkpoint_every": "auto"})
    assert saved == [60]
    saved.clear()
    # A hundred times what it took.
    run(solver, {"checkpoint_every": "'1min'"})
    assert saved == [6, 16, 26, 36, 46, 56, 66]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", [
    "tensors.safetensors", "state.json", "SHA256SUMS"
])
def test_a_damaged_one_is_refused_and_the_one_before_taken(
        run, whole, break_run, folder, capsys, damage, name):
    break_run(8)
    path, = folder.glob(f"*/*/step_*6/{name}")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-10] if damage == "cut" else content)
    if damage == "remove":
        path.unlink()
    resumed = run(objective=EVERY_3)
    output = capsys.readouterr().out
    assert f"WARNING: {path.parent}" in output and "not used" in output
    assert "Continues from step 3" in output
    assert measured(resumed) == whole


def test_of_two_it_is_the_one_written_last(run, whole, break_run, folder):
    """Even if those of later steps are damaged, or of a run that was not
    resumed."""
    break_run(9)
    for path in folder.glob("*/*/step_*/state.json"):
        path.write_text("{}")
    for resume_it, step in [(True, 8), (False, 5), (False, 8)]:
        break_run(step, objective={"resume": resume_it})
        newest = step - step % 3
        assert f"Continues from step {newest}," in break_run(step + 1)
    # The folder that the new one replaced is gone.
    assert not list(folder.rglob("replaced"))
    assert measured(run(objective=EVERY_3)) == whole


def test_a_limit_of_evaluations_counts_those_before(
        run, break_run, folder, capsys):
    unbroken = run(max_runs=2)
    break_run(8, max_runs=2)
    resumed = run(objective=EVERY_3, max_runs=2)
    assert "Continues from step 6" in capsys.readouterr().out
    assert measured(resumed) == measured(unbroken)
    assert resumed.stop_reason.iloc[-1] == "max_runs"


def test_checkpoints_stay_until_the_whole_curve_is_benchopts(
        run, whole, folder, capsys, monkeypatch):
    def shutdown(worker_group):
        raise Interrupted("after the last step")

    with monkeypatch.context() as patch:
        patch.setattr(workers.WorkerGroup, "shutdown", shutdown)
        with pytest.raises(RuntimeError):
            run(objective=EVERY_3)
    capsys.readouterr()
    resumed = run(objective=EVERY_3)
    assert "Continues from step" in capsys.readouterr().out
    assert measured(resumed) == whole and not list(folder.glob("*"))


def test_weights_that_can_not_be_saved_cost_a_warning(
        run, whole, folder, capsys, monkeypatch):
    def full(tensors, path):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    frame = run(objective={"save_weights": True})
    assert "WARNING: no weights are saved: I/O error: No space" in (
        capsys.readouterr().out
    )
    assert measured(frame) == whole


def test_a_checkpoint_of_other_code_is_kept_and_not_used(
        run, break_run, folder, capsys, monkeypatch):
    break_run(8)
    before = sorted(folder.rglob("*"))
    identify = resume.identify

    def other_code(solver):
        run_key, environment_key = identify(solver)
        return run_key, environment_key | {"code": "other", "device": "cuda"}

    monkeypatch.setattr(resume, "identify", other_code)
    run(objective=EVERY_3)
    output = capsys.readouterr().out
    assert "but with different code, device: it is kept and not" in output
    assert "Continues" not in output
    assert sorted(folder.rglob("*")) == before


def test_a_description_that_can_not_be_read_costs_a_warning(
        run, whole, break_run, folder, capsys):
    break_run(8)
    path, = folder.glob("*/*/how.json")
    path = path.parent.rename(path.parent.with_name("other")) / path.name
    path.write_text(path.read_text()[:-10])
    frame = run(objective=EVERY_3)
    assert "but with an unreadable description" in capsys.readouterr().out
    assert measured(frame) == whole


def test_the_key_has_all_that_results_depend_on(
        run, folder, monkeypatch):
    identities = []
    identify = resume.identify
    monkeypatch.setattr(
        resume, "identify",
        lambda solver: identities.append(identify(solver)) or identities[-1],
    )
    run(objective=EVERY_3 | {"dtype": "float32"}, n_repetitions=2)
    run(objective=EVERY_3 | {"dtype": "bfloat16"})
    (who, how), (other, same), (_, low) = identities
    assert who["repetition"] == 0 and other == who | {"repetition": 1}
    assert how == same and low == how | {"dtype": "bfloat16"}
    assert dict(how["versions"])["torch"] == torch.__version__
    assert len(how["files"]) == 3


def test_other_initial_weights_in_the_same_file_are_another_run(
        run, break_run, folder, tmp_path, capsys, bench):
    path = tmp_path / "weights.safetensors"
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32}
    save_weights(make_model("gpt2", 256, seed=1, **shape), path)
    objective = EVERY_3 | {"initial_weights": repr(str(path))}
    break_run(8, objective=objective)
    Objective = bench.get_benchmark_objective()
    problem = Objective.get_instance(initial_weights=str(path))
    before = joblib.hash(problem)
    save_weights(make_model("gpt2", 256, seed=2, **shape), path)
    run(objective=objective)
    output = capsys.readouterr().out
    assert "but with different initial_weights: it is kept and not" in output
    # Nor does benchopt's cache confuse their results.
    assert joblib.hash(problem) != before


@pytest.mark.parametrize("is_file", [
    True, pytest.param(False, marks=pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() == 0,
        reason="root writes to every folder",
    )),
])
def test_a_folder_that_can_not_be_written_costs_a_warning(
        run, whole, folder, capsys, monkeypatch, is_file):
    if is_file:
        folder.touch()
    else:
        folder.mkdir(mode=0o555)
    frame = run(objective=EVERY_3)
    assert "no checkpoint at step 3" in capsys.readouterr().out
    assert measured(frame) == whole


@pytest.mark.parametrize("mebibytes", [0.1, 0.7])
def test_a_full_disk_costs_a_warning_and_leaves_nothing_unfinished(
        run, whole, folder, capsys, monkeypatch, tmp_path, mebibytes):
    """On a small tmpfs, with no room for the first or second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run([
        "mount", "-t", "tmpfs", "-o", f"size={int(mebibytes * 1024)}k",
        "tmpfs", str(disk),
    ], capture_output=True).returncode if shutil.which("mount") else 1
    if mounted != 0:
        pytest.skip("a small disk can't be mounted here")
    monkeypatch.setattr(resume, "get_data_path", lambda _: disk)
    try:
        frame = run(objective=EVERY_3)
        output = capsys.readouterr().out
        assert "WARNING: no checkpoint at step" in output
        assert not list(disk.rglob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert measured(frame) == whole


# ------------------------------------------------------------- real signals

@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """Evaluations of a run of AdamW that is never killed."""
    runs = Runs(tmp_path_factory.mktemp("unbroken"))
    code, output = runs.run()
    assert code == 0, output
    return runs.evaluations()


@pytest.mark.parametrize("moments", [
    # The first two steps are the warm-up's, the third the preparation's.
    [("step", 12), ("step", 7)],
    [("evaluation", 3), ("evaluation", 1)],
    # Files and folders forced to the disk: four, then the name.
    [("writing", 2), ("writing", 9)],
    # Twice in the same interval.
    [("step", 11), ("step", 5), ("step", 5)],
], ids=["step", "evaluation", "writing", "twice"])
def test_a_killed_process_loses_nothing(tmp_path, unbroken, moments):
    runs = Runs(tmp_path)
    for when in moments:
        code, output = runs.run(*when)
        assert code == -signal.SIGKILL, output
        assert not runs.results.exists()
    code, output = runs.run()
    assert code == 0 and "Continues from step" in output, output
    assert runs.evaluations() == unbroken
    assert not runs.left()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_writes_a_checkpoint_and_ends(tmp_path, unbroken, name):
    runs = Runs(tmp_path)
    # In the eleventh step; the last checkpoint by itself is of step 9.
    code, output = runs.run("step", 14, name)
    assert code == 1, output
    assert f"{name}: the run ends after this step, with a" in output
    assert f"Ended by {name} at step 11." in output
    assert "The same command resumes from" in output
    code, output = runs.run()
    assert code == 0 and "Continues from step 11" in output, output
    assert runs.evaluations() == unbroken


@pytest.mark.parametrize("repetitions, step, ended, is_queued", [
    # In the eleventh step; in the warm-up, with nothing to resume from; and
    # before the first step of the second repetition.
    (1, 14, 11, True), (1, 2, 0, False), (2, 28, 0, True),
])
def test_a_slurm_job_that_is_signalled_is_queued_again(
        tmp_path, unbroken, repetitions, step, ended, is_queued):
    """With a fake ``scontrol`` that records its arguments."""
    scontrol, asked = tmp_path / "scontrol", tmp_path / "asked"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    scontrol.chmod(0o755)
    job = Runs(
        tmp_path, repetitions=repetitions, SLURM_JOB_ID="123",
        PATH=os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
    )
    code, output = job.run("step", step, "SIGUSR2")
    assert code == 1, output
    assert f"Ended by SIGUSR2 at step {ended}." in output
    assert asked.exists() == is_queued and not job.results.exists()
    if ended:
        assert asked.read_text() == "requeue 123\n"
        again = Runs(tmp_path)
        code, output = again.run()
        assert code == 0 and "Continues from step 11" in output, output
        assert again.evaluations() == unbroken


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_signal_in_the_last_evaluation_ends_the_runs_that_follow(
        tmp_path, unbroken, name):
    evaluations = len(unbroken["step"])
    code, output = Runs(tmp_path, repetitions=2).run(
        "evaluation", evaluations, name
    )
    assert code == 1, output
    assert f"Ended by {name} at step 0." in output
    assert output.count(f"step {unbroken['step'][-1]} of") == 1


def test_two_processes_of_the_same_command_do_not_harm_each_other(
        tmp_path, unbroken):
    both = [Runs(tmp_path), Runs(tmp_path)]
    for i, runs in enumerate(both):
        runs.results = tmp_path / f"{i}.parquet"
    processes = [runs.start() for runs in both]
    for runs, process in zip(both, processes, strict=True):
        code, output = runs.wait(process)
        assert code == 0, output
        assert "Traceback" not in output and "damaged" not in output
        assert runs.evaluations() == unbroken


def test_the_command_that_kills_at_random_sees_nothing_lost():
    page = (ROOT / "docs/long_runs.rst").read_text()
    command, = re.findall("PYTHONPATH=. python (.*) AdamW SOAP --kills", page)
    process = subprocess.run(
        [sys.executable, command, "SOAP", "--kills", "3", "--num-steps", "30"],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("SOAP: 3 kills (")
    assert "evaluations equal; 0 files left" in process.stdout
