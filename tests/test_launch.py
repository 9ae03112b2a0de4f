"""The number of ranks, the rank of a process, and launchers."""
import shlex
import sys

import pytest
import torch

from benchmark_utils.distributed.launch import check_launcher, choose_world
from docs import Clone, code_blocks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets the number of visible GPUs."""
    return lambda number: monkeypatch.setattr(
        torch.cuda, "device_count", lambda: number
    )


def size(num_devices, device=CUDA, batch_size=512):
    world, _ = choose_world(num_devices, device, batch_size)
    assert world.rank == 0
    return world.size


@pytest.mark.parametrize("visible, arguments, expected", [
    # "auto" is all GPUs that can share a batch equally.
    (8, ["auto"], 8), (8, ["auto", CUDA, 12], 6),
    (3, ["auto"], 2), (3, ["auto", CUDA, 513], 3),
    (3, ["auto", CPU], 1), (3, ["auto", torch.device("mps")], 1),
    (8, ["auto", torch.device("cuda:1")], 1), (4, [4], 4), (4, [4, CPU], 4),
])
def test_the_number_of_ranks(gpus, visible, arguments, expected):
    gpus(visible)
    assert size(*arguments) == expected


@pytest.mark.parametrize("visible, arguments, message", [
    (8, [2, torch.device("cuda:1")], "num_devices=2 is more than the 1"),
    (4, [8], "num_devices=8 is more than the 4"),
])
def test_more_gpus_than_visible_are_refused(
    gpus, visible, arguments, message
):
    gpus(visible)
    with pytest.raises(ValueError, match=message):
        size(*arguments)


@pytest.fixture
def slurm_task(monkeypatch):
    """Task 5 of the 16 of a job that submitit started."""
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_PROCID": "5", "SLURM_LOCALID": "5",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_slurm_task_is_a_rank(slurm_task):
    for num_devices in ("auto", 16):
        world, _ = choose_world(num_devices, CPU, 512)
        assert (world.rank, world.size) == (5, 16)
    with pytest.raises(ValueError, match="num_devices=8 .* has 16 tasks"):
        choose_world(8, CPU, 512)
    check_launcher()


@pytest.mark.parametrize("visible, taken", [(8, 5), (1, 0), (4, 1)])
def test_a_slurm_task_takes_its_gpu(
    slurm_task, gpus, monkeypatch, visible, taken
):
    """Whether it sees one GPU or all of its node."""
    chosen = []
    gpus(visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    check_launcher()
    assert chosen == [taken]


@pytest.mark.parametrize("launcher, variables", [
    ("torchrun", {"WORLD_SIZE": "8"}),
    ("srun", {"SLURM_STEP_NUM_TASKS": "8"}),
    ("mpirun", {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "0"}),
])
@pytest.mark.parametrize("program, typed", [
    ("/usr/bin/benchopt", "benchopt"),
    ("/usr/lib/benchopt/__main__.py", "benchopt"),
    ("mine.py", "python mine.py"),
])
def test_one_sentence_tells_users_of_a_launcher_what_to_type(
    monkeypatch, launcher, variables, program, typed
):
    """It is what they have typed, options and all, without the launcher."""
    options = "run . --config configs/speedrun.yml -s 'Muon[momentum=0.9]'"
    monkeypatch.setattr(sys, "argv", [program, *shlex.split(options)])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        check_launcher()
    sentence = str(error.value)
    assert sentence.startswith(f"{launcher} started 8 processes")
    assert "num_devices=8" in sentence and "\n" not in sentence
    assert sentence.endswith(f"without {launcher}, type {typed} {options}")


def test_a_launcher_of_one_process_may_launch(monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    check_launcher()


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(tmp_path):
    clone = Clone(tmp_path / "clone")
    command, = code_blocks("docs/several_devices.rst", "bash")
    clone.run(f"{command} --no-plot")
    sizes = clone.results().objective_world_size
    assert set(sizes) == {1, 2}
