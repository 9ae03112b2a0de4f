"""How many ranks train a model, and which of them a process is."""
import pytest
import torch

from benchmark_utils.distributed import launch
from benchmark_utils.distributed.launch import choose_world
from docs import Clone, code_blocks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """Say how many GPUs torch sees."""
    return lambda number: monkeypatch.setattr(
        torch.cuda, "device_count", lambda: number
    )


def size(num_devices, device=CUDA, batch_size=512):
    world, _ = choose_world(num_devices, device, batch_size)
    assert world.rank == 0
    return world.size


def test_auto_is_all_gpus_that_can_share_a_batch(gpus):
    gpus(8)
    assert size("auto") == 8 and size("auto", batch_size=12) == 6
    gpus(3)
    assert size("auto") == 2 and size("auto", batch_size=513) == 3
    assert size("auto", CPU) == 1
    assert size("auto", torch.device("mps")) == 1


def test_a_device_by_number_is_one(gpus):
    gpus(8)
    assert size("auto", torch.device("cuda:1")) == 1
    with pytest.raises(ValueError, match="num_devices=2 is more than the 1"):
        size(2, torch.device("cuda:1"))


def test_more_gpus_than_there_are_are_refused(gpus):
    gpus(4)
    assert size(4) == 4 and size(4, CPU) == 4
    with pytest.raises(ValueError, match="num_devices=8 is more than the 4"):
        size(8)


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
    launch.check_launcher()


@pytest.mark.parametrize("visible, taken", [(8, 5), (1, 0), (4, 1)])
def test_a_slurm_task_takes_its_gpu(
    slurm_task, gpus, monkeypatch, visible, taken
):
    """Whether it sees one GPU or all of its node."""
    chosen = []
    gpus(visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    launch.check_launcher()
    assert chosen == [taken]


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(tmp_path):
    clone = Clone(tmp_path / "clone")
    command, = code_blocks("docs/several_devices.rst", "bash")
    clone.run(f"{command} --no-plot")
    sizes = clone.results().objective_world_size
    assert set(sizes) == {1, 2}
