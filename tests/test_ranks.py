"""Several processes train one model: they give the same curve as one, and
when one of them fails, all end.

Real processes, over gloo, of one thread each.
"""
import collections
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from benchopt.results import read_results

from benchmark_utils.distributed import workers
from benchmark_utils.training import checkpoints
from conftest import ROOT, TINY_DATASET, TINY_OBJECTIVE, TINY_SOLVER, selector
from docs import Clone
from rank_worker import (
    NUM_STEPS,
    Case,
    launch,
    set_up,
    start,
    train_alone,
    weights_hash,
)

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent
FAULTY = TESTS / "faulty_solver" / "faulty.py"
SOLVERS = sorted(
    file.stem for file in (ROOT / "solvers").glob("*.py")
    # Another name of AdamW.
    if file.stem != "adam"
)
SHARED = {"muon", "muonh", "normuon", "scion", "shampoo", "soap"}
# Relative difference of losses in float64: rounding alone, which SOAP's QR
# decomposition in float32 makes larger.
ROUNDING = collections.defaultdict(lambda: 1e-12, soap=1e-7)


@pytest.fixture(autouse=True)
def default_interrupt():
    """Processes inherit an ignored SIGINT, as that of a suite in the
    background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def environment():
    """Environment variables of a process that a test starts."""
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def relative_difference(first, second):
    first, second = np.array(first), np.array(second)
    return np.abs((first - second) / first).max()


def check_equal(case, seen, alone, tolerance, exact=False):
    """Compare what each rank saw with a training by one rank."""
    assert len(alone["losses"]) == 1 + NUM_STEPS
    assert alone["losses"][-1] < alone["losses"][0]
    # The rows of the ranks, one after another, are those of the batch.
    tokens = np.concatenate([rank["tokens"] for rank in seen], axis=2)
    assert np.array_equal(tokens, alone["tokens"])
    for rank in seen:
        assert relative_difference(alone["losses"], rank["losses"]) < tolerance
        assert rank["val_loss"] == pytest.approx(
            alone["val_loss"], rel=tolerance
        )
        # All ranks have the same results and the same model.
        for key in ("losses", "val_loss", "weights"):
            assert rank[key] == seen[0][key], key
        if exact:
            assert rank["weights"] == alone["weights"]
    states = [rank["num_states"] for rank in seen]
    if case.stem in SHARED:
        # The state of a matrix is on one rank, the rest on all.
        # Hyperball keeps a radius per matrix in addition.
        num_shared = 16 if case.stem == "muonh" else 8
        assert alone["num_states"] - num_shared == (
            (sum(states) - num_shared) / len(seen)
        )
    else:
        assert states == [alone["num_states"]] * len(seen)


# Two ranks of a micro-batch each, and one rank of two: the same sum.
TWO_MICRO_BATCHES = {stem: Case(stem, 4, 2) for stem in SOLVERS}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The reports of two ranks, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return launch(folder, 2, list(TWO_MICRO_BATCHES.values())), folder


@pytest.mark.parametrize("case", TWO_MICRO_BATCHES.values(), ids=SOLVERS)
def test_two_ranks_are_one_to_the_bit(two_ranks, case):
    check_equal(
        case, two_ranks[0][case], train_alone(case), 1e-6, exact=True
    )


def test_ranks_agree_on_what_each_sees_differently(two_ranks):
    seen, _ = two_ranks
    # The first case's ranks.
    for rank in seen[TWO_MICRO_BATCHES[SOLVERS[0]]]:
        assert rank["agreements"] == {
            "micro_batch_size": 1, "maximum": 1, "mean": 0.5,
            "agreed": [False, True], "from_rank_0": 0,
        }


@pytest.mark.parametrize("stem", ["adamw", "muon"])
def test_one_rank_continues_a_checkpoint_of_two(two_ranks, stem):
    """A checkpoint has the state of every matrix, whichever rank owned it."""
    seen, folder = two_ranks
    case = TWO_MICRO_BATCHES[stem]
    _, solver = set_up(case, 1)
    trainer = start(solver, case)
    path, = checkpoints.newest_first(folder / f"{SOLVERS.index(stem)}_{stem}")
    trainer.load_state_dict(checkpoints.load(path))
    assert trainer.step == NUM_STEPS // 2
    trainer.train(NUM_STEPS)
    assert weights_hash(trainer) == seen[case][0]["weights"]


def test_every_solver_is_the_same_on_four_ranks(tmp_path):
    """In float64, where nothing makes the rounding of a sum in another order
    large: bfloat16's would, in which some orthogonalise."""
    seen = launch(tmp_path, 4, [
        Case(stem, 4, 1, torch.float64) for stem in SOLVERS
    ])
    for case in seen:
        alone = train_alone(case._replace(micro_batch_size=4))
        check_equal(case, seen[case], alone, ROUNDING[case.stem])


@pytest.mark.parametrize("dtype, stems, tolerance", [
    (torch.float64, ["adamw", "muon"], 1e-12),
    (torch.float32, ["adamw"], 1e-6),
])
def test_any_micro_batch_gives_the_same(tmp_path, dtype, stems, tolerance):
    """Eight rows by one, two and four ranks."""
    cases = {
        size: [
            Case(stem, 8, micro_batch_size, dtype) for stem in stems
            for micro_batch_size in (1, 2, 4, 8)
            if micro_batch_size <= 8 // size
        ] for size in (1, 2, 4)
    }
    alone = {case: train_alone(case) for case in cases[1]}
    whole = {stem: alone[Case(stem, 8, 8, dtype)] for stem in stems}
    for case in alone:
        check_equal(case, [alone[case]], whole[case.stem], tolerance)
    for size in (2, 4):
        (tmp_path / str(size)).mkdir()
        seen = launch(tmp_path / str(size), size, cases[size])
        for case in seen:
            check_equal(case, seen[case], whole[case.stem], tolerance)


# Runs through benchopt.


def command(solvers, objective=None, *options):
    return [
        sys.executable, "-m", "benchopt", "run", str(ROOT), "-d",
        selector("Simulated", TINY_DATASET | {"repeat": True}), "-o",
        selector("nanoGPT", TINY_OBJECTIVE | (objective or {})),
        *(part for solver in solvers for part in ("-s", solver)),
        "--no-timeout", "--max-runs", "10000", "--no-plot", *options,
    ]


def faulty(**parameters):
    return selector(str(FAULTY), parameters)


ADAM = selector("AdamW", TINY_SOLVER)


@contextlib.contextmanager
def benchopt(tmp_path, solvers, objective=None, *options):
    """Start benchopt on two ranks, in a process group like a terminal's."""
    process = subprocess.Popen(
        command(
            solvers, {"num_devices": 2} | (objective or {}),
            "--output", str(tmp_path / "out.parquet"), *options
        ),
        env=environment() | {
            "BENCHOPT_CACHE": str(tmp_path / "cache"),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until_training(process):
    """Read until an evaluation is done, not always that of step 0: the run
    may resume another test's. Returns the workers."""
    text = ""
    while ", val_loss " not in text:
        piece = process.stdout.read(1)
        assert piece, text
        text += piece
    return psutil.Process(process.pid).children()


def wait_for_end(processes, seconds=10):
    """Seconds until all of them have ended."""
    start = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive
    return time.monotonic() - start


def test_a_run_on_two_devices_is_the_run_on_one(
    run, capsys, tmp_path, monkeypatch
):
    """Also in benchopt's cache, from which no process starts."""
    options = dict(objective={"num_devices": "[1,2]"}, no_cache=False)
    monkeypatch.setenv("BENCHOPT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    frame = run({"Muon": {}}, **options)
    assert torch.get_num_threads() == threads
    one = frame[frame.p_obj_num_devices == 1]
    two = frame[frame.p_obj_num_devices == 2]
    assert (one.world_size == 1).all() and (two.world_size == 2).all()
    assert (two.stop_reason == "horizon").all() and len(two) == len(one)
    for name in ("value", "train_loss"):
        assert one[name].to_numpy() == pytest.approx(two[name].to_numpy(),
                                                     rel=1e-4)
    assert one.objective_name.str.contains("num_devices=1").all()
    assert two.objective_name.str.contains("num_devices=2").all()
    capsys.readouterr()
    # No process can be started.
    monkeypatch.setattr(workers, "WorkerGroup", None)
    again = run({"Muon": {}}, **options)
    assert capsys.readouterr().out.count("cached") == 2
    assert (again.time == frame.time).all()


def test_each_fault_ends_its_own_run_alone(tmp_path):
    """Faults of a worker and of rank 0; the next solver gets ranks of its
    own."""
    with benchopt(tmp_path, [
        faulty(fault="raise", rank=1), faulty(fault="kill", rank=1),
        faulty(fault="raise", rank=0), ADAM,
    ]) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "MemoryError: out of memory on rank 1" in output
    assert "Rank 1 was killed by SIGKILL" in output
    assert "MemoryError: out of memory on rank 0" in output
    frame = read_results(tmp_path / "out.parquet")
    assert frame.solver_name.str.startswith("AdamW").all()
    assert (frame.objective_world_size == 2).all()


@pytest.mark.parametrize("kill, name", [
    (os.kill, "SIGKILL"), (os.kill, "SIGTERM"),
    # Ctrl-C goes to every process of a terminal.
    (os.killpg, "SIGINT"),
])
def test_no_worker_survives_the_end_of_rank_0(tmp_path, kill, name):
    solvers = [faulty(fault="none", num_steps=10**6), ADAM]
    with benchopt(tmp_path, solvers) as process:
        processes = wait_until_training(process)
        assert len(processes) == 1
        kill(process.pid, signal.Signals[name])
        output, _ = process.communicate(timeout=10)
        assert process.returncode
        assert wait_for_end(processes) < 5
        assert "AdamW: AdamW on" not in output
    assert not (tmp_path / "out.parquet").exists()


def test_a_run_of_two_ranks_resumes(tmp_path):
    """Also the state of matrices that rank 1 owns."""
    solver = selector("Muon", TINY_SOLVER | {"num_steps": 300})
    with benchopt(tmp_path, [solver]) as process:
        processes = wait_until_training(process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert "The same command resumes from" in output
        wait_for_end(processes)
    with benchopt(tmp_path, [solver]) as process:
        output, _ = process.communicate(timeout=200)
    assert "Continues from step" in output
    resumed = read_results(tmp_path / "out.parquet")
    with benchopt(tmp_path, [solver], {"checkpoint_every": 0}) as process:
        process.communicate(timeout=200)
    whole = read_results(tmp_path / "out_1.parquet")
    assert (resumed.objective_times_resumed.iloc[-1], len(resumed)) == (
        1, len(whole)
    )
    assert (resumed.objective_value == whole.objective_value).all()


def test_a_silent_rank_is_given_up(run, monkeypatch, capsys):
    monkeypatch.setattr(workers, "TIMEOUT_SECONDS", 5)
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    # Children of other tests, such as compilers.
    before = psutil.Process().children()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="Benchmark failed"):
        run({str(FAULTY): {"fault": "hang"}}, {"num_devices": 2})
    assert time.monotonic() - start < 60
    error = "PeerFailure: Rank 0 of 2: timed out waiting for the other ranks"
    assert error in capsys.readouterr().err
    assert set(psutil.Process().children()) <= set(before)


# Workers on GPUs, shown on fake devices.


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"),
    reason="the fake devices need Linux and g++",
)
def test_a_worker_computes_on_its_own_gpu(tmp_path):
    process = subprocess.run(
        [sys.executable, "tests/cuda_rank.py", tmp_path,
         "adamw", "muon", "lost"],
        cwd=ROOT, capture_output=True, text=True, env=environment(),
    )
    assert process.returncode == 0, process.stderr[-5000:]
    seen = dict(json.loads(line) for line in process.stdout.splitlines())
    # Bytes of the matrices of two blocks of width 32, and of all weights.
    matrices = 2 * 12 * 32**2 * 4
    weights = matrices + 4 * ((256 + 32) * 32 + 2 * 13 * 32 + 2 * 32)
    for stem in ("adamw", "muon"):
        report = seen[stem]
        # The warm-up has two steps, the preparation a backward pass.
        num_steps = report["num_steps"] + 2
        assert report["devices"] == ["cuda:1"]
        sent = report["sent"]
        assert sent["gradients all_reduce"] == {
            "cuda:1": weights * (num_steps + 1)
        }
        # No rank waits for its device before the step is queued.
        assert not {"step", "gradients", "run"} & set(report["waits"])
    assert sent["step broadcast"] == {"cuda:1": matrices * num_steps}
    # Without setting its device, it would compute on rank 0's.
    assert seen["lost"]["devices"] == ["cuda:0"]


def test_torchrun_ends_at_once(tmp_path):
    """No process trains, and none uses the cache."""
    with benchopt(tmp_path, [ADAM], {"num_devices": 1}) as process:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    program, *arguments = command([ADAM, "SGD"], {"num_devices": 1})[2:]
    process = subprocess.run(
        ["torchrun", "--nproc-per-node=2", "-m", program, *arguments],
        env=environment() | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "BENCHOPT_CACHE": str(tmp_path / "cache"),
        }, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=100,
    )
    assert process.returncode != 0
    assert process.stdout.count("torchrun started 2 processes") == 1
    assert f"type {shlex.join(['benchopt', *arguments])}\n" in process.stdout
    assert "cached" not in process.stdout
    assert "Training on" not in process.stdout


def test_runs_at_the_same_time_do_not_share_devices(tmp_path):
    with benchopt(tmp_path, [ADAM, "SGD"], None, "-j", "2") as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode
    assert output.strip().endswith("leave out -j, or choose num_devices=1.")
    assert "AdamW: AdamW on" not in output
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A fake cluster: its nodes are this machine; submitit is the real one."""
    pytest.importorskip("submitit")
    (tmp_path / "jobs").mkdir()
    for name, value in {
        "PATH": f"{TESTS / 'fake_slurm'}:{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path / "jobs"), "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    Clone(tmp_path / "clone")
    return tmp_path


def run_on_slurm(slurm, solvers, num_devices=2):
    """Run a clone under configs/slurm.yml with a task on each of two nodes;
    return its output, and the logs of the tasks by name."""
    config = yaml.safe_load((ROOT / "configs" / "slurm.yml").read_text())
    config |= {
        "slurm_nodes": 2, "slurm_ntasks_per_node": 1, "timeout_min": 1,
    }
    (slurm / "slurm.yml").write_text(yaml.safe_dump(config))
    arguments = command(
        solvers, {"num_devices": num_devices}, "--parallel-config",
        str(slurm / "slurm.yml"), "--output", str(slurm / "out.parquet"),
    )
    arguments[arguments.index(str(ROOT))] = str(slurm / "clone")
    process = subprocess.run(
        arguments, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    logs = (slurm / "clone" / "benchopt_run").glob("*_log.out")
    return process.stdout, {log.name: log.read_text() for log in logs}


def test_the_tasks_of_a_slurm_job_train_one_model(slurm, run):
    output, logs = run_on_slurm(slurm, [ADAM])
    frame = read_results(slurm / "out.parquet")
    here = run({"AdamW": {}}, {"num_devices": 2})
    assert (frame.objective_world_size == 2).all(), output
    assert frame.objective_value.tolist() == here.value.tolist()
    assert frame.objective_stop_reason.tolist() == here.stop_reason.tolist()
    # The front node computes nothing.
    assert "Training on" not in output
    assert len(logs) == 2
    assert all("Training on cpu" in log for log in logs.values())
    # The cache has rank 0's results, not rank 1's.
    again, _ = run_on_slurm(slurm, [ADAM])
    assert "cached" in again
    assert (read_results(slurm / "out.parquet").time == frame.time).all()


def test_a_slurm_task_that_fails_ends_its_run_alone(slurm):
    output, logs = run_on_slurm(slurm, [faulty(fault="raise", rank=1), ADAM])
    frame = read_results(slurm / "out.parquet")
    assert frame.solver_name.str.startswith("AdamW").all(), output
    errors = (slurm / "clone" / "benchopt_run").glob("*_0_0_log.err")
    assert "out of memory on rank 1" in next(errors).read_text()


def test_a_slurm_job_with_too_few_tasks_says_so(slurm):
    run_on_slurm(slurm, [ADAM], num_devices=4)
    errors = list((slurm / "clone" / "benchopt_run").glob("*_log.err"))
    assert len(errors) == 2
    for error in errors:
        assert "num_devices=4 but the Slurm job has 2 tasks" in (
            error.read_text()
        )


@pytest.mark.parametrize("ranks, others", [
    ([0, 1], []), ([1], [selector("SGD", TINY_SOLVER)]),
])
def test_a_slurm_job_near_the_end_of_its_time_is_queued_again(
        slurm, run, ranks, others):
    """By submitit itself, for a signal to any rank; the command waits for the
    requeued job and for the others."""
    import submitit

    job = slurm / "clone" / "benchopt_run"

    def end_time():
        while not any(
            ", val_loss " in log.read_text() for log in job.glob("*.out")
        ):
            time.sleep(0.05)
        for task in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(job) in task.cmdline() and (
                    int(task.environ().get("SLURM_PROCID", -1)) in ranks
                ):
                    task.send_signal(signal.SIGUSR2)

    threading.Thread(target=end_time, daemon=True).start()
    solver = {"num_steps": 200}
    output, logs = run_on_slurm(slurm, [
        selector("AdamW", TINY_SOLVER | solver), *others
    ])
    frame = read_results(slurm / "out.parquet")
    assert frame.solver_name.nunique() == 1 + len(others), output
    frame = frame[frame.solver_name.str.startswith("AdamW")]
    assert frame.objective_times_resumed.iloc[-1] == 1
    whole = run({"AdamW": solver}, {"num_devices": 2}, {"repeat": True})
    assert frame.objective_value.tolist() == whole.value.tolist()
    both = [log for log in logs.values() if "Continues from step" in log]
    assert len(both) == 2
    assert sum("Calling checkpoint method" in log for log in both) == 1
    assert not any("Runs that need attention" in log for log in logs.values())
    # The number of time limits is not bounded.
    submitted = next(job.glob("*0_submitted.pkl"))
    submission = submitit.helpers.DelayedSubmission.load(submitted)
    assert submission._timeout_countdown == 0
    assert "#SBATCH --requeue\n" in next(job.glob("*.sh")).read_text()
