"""Each kind of device is a row of a table, and "auto" says what it took and
why."""
import math
import os
import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from benchmark_utils.console.errors import UserError
from benchmark_utils.hardware.compilation import choose_compile
from benchmark_utils.hardware.device import (
    KINDS,
    autocast,
    device_name,
    synchronize,
)
from benchmark_utils.hardware.memory import (
    max_micro_batch,
    peak_memory,
    release_memory,
)
from benchmark_utils.hardware.selection import (
    Machine,
    choose_device,
    choose_dtype,
)
from benchmark_utils.training.trainer import (
    Trainer,
    generator_states,
    set_generator_states,
)
from conftest import ROOT

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.fixture
def available(monkeypatch):
    """Pretend that these GPUs are there, and no others."""
    def available(*kinds):
        for kind, module in {
            "cuda": torch.cuda, "mps": torch.backends.mps
        }.items():
            monkeypatch.setattr(
                module, "is_available", lambda kind=kind: kind in kinds
            )

    return available


@pytest.fixture
def apple_gpu(monkeypatch):
    """torch.mps of a machine with 8 GiB, which counts calls."""
    calls = []

    def set_rng_state(state):
        torch.mps.state = state

    monkeypatch.setattr(torch, "mps", types.SimpleNamespace(
        get_rng_state=lambda: torch.mps.state, set_rng_state=set_rng_state,
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=lambda: calls.append("empty_cache"),
        driver_allocated_memory=lambda: 3 * 2**30,
        current_allocated_memory=lambda: 2**30,
        recommended_max_memory=lambda: 5 * 2**30,
    ))
    return calls


@pytest.mark.parametrize("gpus, step_flops, expected, reason", [
    (["cuda", "mps"], 1e3, "cuda", "CUDA device found"),
    (["mps"], 1e14, "mps", "Apple GPU found"),
    (["mps"], math.inf, "mps", "Apple GPU found"),
    (["mps"], 1e9, "cpu", "there is no CUDA device and the problem is small "
                          "for the Apple GPU"),
    ([], 1e14, "cpu", "there is no CUDA device and there is no Apple GPU"),
])
def test_auto_takes_the_best_device_that_is_worth_it(
        available, gpus, step_flops, expected, reason):
    available(*gpus)
    assert choose_device("auto", step_flops) == (
        torch.device(expected), reason
    )


@pytest.mark.parametrize("device, message", [
    ("tpu9", "tpu9"), ("meta", "does not know"), (1.5, "1.5"),
    ("cuda", "finds none"), ("mps", "finds none"), ("cuda:7", "finds none"),
])
def test_a_device_that_can_not_be_used_is_refused(
        available, device, message):
    available()
    with pytest.raises(ValueError, match=message) as error:
        choose_device(device)
    assert f"device={device!r} can't be used" in str(error.value)
    assert "Use 'auto', 'cpu', 'cuda' or 'mps'." in str(error.value)


@pytest.mark.parametrize("features, expected", [
    ({"avx512_bf16": True}, torch.bfloat16),
    ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ({"avx2": True}, torch.float32), ({}, torch.float32),
])
def test_bfloat16_where_a_processor_multiplies_it(
        monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    dtype, reason = choose_dtype("auto", CPU)
    assert dtype == expected
    assert ("not" in reason) == (expected == torch.float32)


@pytest.mark.parametrize("capability, expected", [
    ((7, 5), torch.float32), ((8, 0), torch.bfloat16),
    ((9, 0), torch.bfloat16),
])
def test_bfloat16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability
    )
    assert choose_dtype("auto", torch.device("cuda"))[0] == expected


def test_a_machine_says_what_was_chosen_and_why(available):
    available()
    machine = Machine.choose("auto", "float32")
    assert machine[:2] == (CPU, torch.float32)
    assert machine.describe() == (
        "Training on cpu (there is no CUDA device and there is no Apple GPU) "
        "in float32 (as asked for)"
    )
    with pytest.raises(ValueError, match="dtype='float16' is not one of"):
        Machine.choose("cpu", "float16")


def test_an_apple_gpu_is_a_row_of_the_table(available, apple_gpu):
    available("mps")
    device, dtype, _, reason = Machine.choose(step_flops=1e14)
    assert (device, dtype) == (MPS, torch.float32)
    assert device_name(device) == "Apple GPU (mps)"
    assert not KINDS["mps"].pins_memory
    # GPT-2 at full size keeps 0.64 MB per token: half of 4 GiB holds 3 rows.
    assert max_micro_batch(1024, device, 64 * 13 * 768) == 3
    assert max_micro_batch(1024, device, 1000) == 4
    assert choose_compile("auto", device, 1e30)[0] is False
    synchronize(device)
    release_memory(device)
    assert apple_gpu == ["synchronize", "empty_cache"]
    assert peak_memory(device) == 3 * 2**30


def test_the_random_state_of_an_apple_gpu_is_kept_too(apple_gpu):
    torch.mps.state = torch.tensor([1, 2], dtype=torch.uint8)
    states = generator_states(MPS)
    drawn = torch.rand(3), np.random.rand(), random.random()
    torch.mps.state = None
    set_generator_states(MPS, states)
    assert torch.mps.state.tolist() == [1, 2]
    again = torch.rand(3), np.random.rand(), random.random()
    assert torch.equal(drawn[0], again[0]) and drawn[1:] == again[1:]
    # A processor's own are torch's.
    assert generator_states(CPU).keys() == {"torch", "numpy", "python"}


def test_an_operation_that_apple_gpus_lack_is_one_sentence(run, monkeypatch):
    """What torch says of it, word for word, in the middle of a run."""
    def train_step(*_):
        raise NotImplementedError(
            "The operator 'aten::_linalg_eigh.eigenvalues' is not currently "
            "implemented for the MPS device. If you want this op to be "
            "considered for addition please comment on https://github.com/"
            "pytorch/pytorch/issues/141287 and mention use-case, that "
            "resulted in missing op as well as commit hash. As a temporary "
            "fix, you can set the environment variable "
            "`PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for "
            "this op."
        )

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setenv("BENCHOPT_RAISE_ON_ERROR", "1")
    with pytest.raises(UserError) as error:
        run({"SOAP": {}})
    assert str(error.value) == (
        "SOAP: torch has no aten::_linalg_eigh.eigenvalues on Apple's GPUs. "
        "Set the environment variable PYTORCH_ENABLE_MPS_FALLBACK=1, and the "
        "processor computes it; or train with device=cpu."
    )


# torch's autocast for CUDA is off where there is none: see test_cuda.py.
@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_autocast_is_there_for_each_kind_of_device(kind):
    with autocast(torch.device(kind), torch.bfloat16):
        assert torch.is_autocast_enabled(kind)
        assert torch.get_autocast_dtype(kind) == torch.bfloat16
    with autocast(torch.device(kind), torch.float32):
        assert not torch.is_autocast_enabled(kind)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts by kind")
@pytest.mark.parametrize("kept", [True, False])
def test_peak_memory_of_a_cpu_is_that_of_the_run_alone(tmp_path, kept):
    """In a process of its own, with and without the allocator's settings:
    neither files that are read nor the run before count."""
    np.zeros(2**26, np.uint8).tofile(tmp_path / "shard.bin")
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAKS, tmp_path / "shard.bin"]
        + ["kept"] * kept,
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    run, read, reread, small = (float(line) for line in output.split())
    assert run == pytest.approx(100, abs=2)
    assert read < 2 and reread < 2
    assert small == pytest.approx(10, abs=2)


MEASURE_PEAKS = """
import sys
import numpy as np
import torch
from benchmark_utils.hardware import memory

cpu = torch.device("cpu")

def show():
    print(memory.peak_memory(cpu) / 2**20)

if "kept" in sys.argv:
    memory.keep_freed_memory()
memory.release_memory(cpu)
run = torch.ones(100 * 2**18)
del run
show()
memory.release_memory(cpu)
shard = np.memmap(sys.argv[1])
shard.sum()
show()
memory.release_memory(cpu)
shard.sum()
show()
del shard
memory.release_memory(cpu)
run = torch.ones(10 * 2**18)
del run
show()
"""
