"""The training loop does what its definition says, and nothing else."""
import contextlib
import math
import sys
import weakref

import numpy as np
import pytest
import torch

from benchmark_utils.device import choose_device, choose_dtype
from benchmark_utils.models.gpt2 import GPT2
from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.optimizers.groups import check_coverage
from benchmark_utils.data.shards import TokenShards
from benchmark_utils.solver import TrainingSolver
from benchmark_utils.training.compilation import choose_compile
from benchmark_utils.training.memory import (
    choose_micro_batch, max_micro_batch
)


class PlainAdam(TrainingSolver):
    """A solver outside the benchmark, to drive the loop by hand."""

    name = "PlainAdam"
    num_steps, warmup_steps, learning_rate = 6, 2, 1e-2
    schedule, cooldown = "cosine", 1.0
    # Below every gradient's norm on this problem: clipping is at work.
    max_grad_norm = 0.2

    def get_optimizer(self, roles):
        parameters = [p for role in roles.values() for p in role]
        return torch.optim.AdamW(parameters, lr=self.learning_rate)

    def get_seed(self, **_):
        return 0


def make_model():
    return GPT2(64, 16, 2, 2, 16, seed=0)


@pytest.fixture
def loader(shard_dir):
    shards = TokenShards(
        [shard_dir / f"fineweb_train_00000{i}.bin" for i in (1, 2)], 64
    )
    return BatchLoader(shards, batch_size=4, sequence_length=16)


@pytest.fixture
def trained(loader):
    """Train; return the solver and the model's weights after the last step.
    """
    def trained(**attributes):
        micro_batch_size = attributes.pop("micro_batch_size", "auto")
        solver = PlainAdam()
        vars(solver).update(attributes)
        solver.set_objective(
            make_model=make_model, train_loader=loader, eval_every=100,
            val_tokens=64, micro_batch_size=micro_batch_size,
            max_micro_batch=4, device=torch.device("cpu"),
            dtype=attributes.pop("dtype", torch.float32),
            compile=attributes.pop("compile", False), description="test",
        )
        solver.pre_run_hook(None)
        solver.run(lambda: True)
        return solver, torch.cat([
            p.detach().flatten() for p in solver._model.parameters()
        ])

    return trained


def test_equals_a_loop_written_out(trained, loader):
    """The same training, written as one would in a notebook."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = loader.shards.arrays[0].astype(np.int64)
    for step in range(6):
        window = torch.from_numpy(tokens[step * 64:(step + 1) * 64 + 1])
        model(window[:-1].view(4, 16), window[1:].view(4, 16)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        if step < 2:
            factor = (step + 1) / 2
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - 2) / 4))
        optimizer.param_groups[0]["lr"] = 1e-2 * factor
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    _, weights = trained()
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_do_not_change_the_mathematics(
        trained, micro_batch_size):
    results = []
    for size in (4, micro_batch_size):
        solver, weights = trained(micro_batch_size=size)
        results.append((weights, solver.get_result()["train_loss"]))
    (whole, whole_loss), (split, split_loss) = results
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)
    assert split_loss == pytest.approx(whole_loss, rel=1e-6)


def test_training_is_reproducible_to_the_last_bit(trained):
    assert torch.equal(trained()[1], trained()[1])


@pytest.mark.parametrize("change", [
    {"num_steps": 7}, {"warmup_steps": 3}, {"schedule": "linear"},
    {"cooldown": 0.3}, {"max_grad_norm": 0.1}, {"max_grad_norm": 0},
    {"learning_rate": 2e-2}, {"dtype": torch.bfloat16},
])
def test_every_setting_matters(trained, change):
    _, reference = trained(learning_rate=1e-2)
    _, weights = trained(**change)
    assert (weights - reference).abs().max() > 1e-5


def test_as_many_updates_as_the_horizon(trained):
    solver, _ = trained(num_steps=5)
    steps = {
        int(state["step"]) for state in solver._optimizer.state.values()
    }
    assert steps == {5}
    assert solver.get_result()["step"] == 5


def test_warm_up_trains_throw_away_weights(trained):
    solver, expected = trained()
    solver.warm_up()
    solver.pre_run_hook(None)
    assert solver.get_result()["step"] == 0
    for fresh, parameter in zip(
        make_model().parameters(), solver._model.parameters()
    ):
        assert torch.equal(fresh, parameter)
    solver.run(lambda: True)
    weights = torch.cat([
        p.detach().flatten() for p in solver._model.parameters()
    ])
    assert torch.equal(weights, expected)


def test_training_loss_is_the_mean_since_the_last_evaluation(
        trained, monkeypatch):
    losses = []
    step = TrainingSolver._train_step

    def recording_step(solver, inputs, targets):
        with torch.no_grad():
            losses.append(solver._model(inputs, targets).item())
        step(solver, inputs, targets)

    monkeypatch.setattr(TrainingSolver, "_train_step", recording_step)
    solver, _ = trained()
    assert solver.get_result()["train_loss"] == pytest.approx(
        np.mean(losses), rel=1e-5
    )
    # Asked after each step, it is that step's loss; and then the same again.
    solver.pre_run_hook(None)
    means = []
    solver.run(lambda: means.append(solver.get_result()["train_loss"]) or 1)
    assert means[1:] == pytest.approx(losses[-6:], rel=1e-5)
    assert solver.get_result()["train_loss"] == means[-1]
    inputs, targets = next(solver._loader.batches())
    untrained = make_model()(inputs, targets).item()
    assert means[0] == pytest.approx(untrained, rel=1e-6)


class Extrapolated(PlainAdam):
    """Evaluates twice the weights that it trains."""

    @contextlib.contextmanager
    def evaluation_weights(self, optimizer):
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.mul_(2.0)
        yield


def test_other_weights_can_be_evaluated_and_training_goes_on(
        trained, loader):
    _, expected = trained()
    solver = Extrapolated()
    solver.set_objective(
        make_model=make_model, train_loader=loader, eval_every=2,
        val_tokens=64, micro_batch_size="auto", max_micro_batch=4,
        device=torch.device("cpu"), dtype=torch.float32, compile=False,
        description="test",
    )
    solver.pre_run_hook(None)
    seen = []

    def callback():
        model = solver.get_result()["model"]
        seen.append(model.final_norm.weight.mean().item())
        assert solver._model.final_norm.weight.mean().item() < 1.5
        return True

    solver.run(callback)
    weights = torch.cat([
        p.detach().flatten() for p in solver._model.parameters()
    ])
    assert torch.equal(weights, expected)
    # The gains are near 1 in training.
    assert [round(value) for value in seen] == [2] * 7


@pytest.mark.parametrize("calls, message", [
    (0, "never called the closure"),
    (2, "PlainAdam asked for a second forward-backward pass"),
])
def test_each_step_is_one_forward_backward(trained, calls, message):
    class Optimizer(torch.optim.SGD):
        def step(self, closure):
            for _ in range(calls):
                closure()

    with pytest.raises(ValueError, match=message):
        trained(get_optimizer=lambda roles: Optimizer(
            [p for role in roles.values() for p in role], lr=0.1
        ))


def test_one_model_is_in_memory_at_a_time(trained):
    first, _ = trained()
    weights = weakref.ref(first._model.token_embedding.weight)
    # What torch.compile adds to a model is a reference to itself.
    first._compile(first._model)
    second, _ = trained()
    assert first._model is None and first._optimizer is None
    assert weights() is None
    assert second._model is not None


@pytest.mark.parametrize("groups, message", [
    (lambda parameters: parameters[1:], "none or several: token_embedding"),
    (lambda parameters: [*parameters, torch.zeros(3)], r"shape \(3,\)"),
])
def test_parameters_in_no_group_are_refused(groups, message):
    model = make_model()
    optimizer = torch.optim.SGD(groups(list(model.parameters())), lr=1.0)
    with pytest.raises(ValueError, match=message):
        check_coverage(optimizer, model)


def test_a_parameter_in_two_groups_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups.append(
        {"params": [model.final_norm.bias], "lr": 0.1}
    )
    with pytest.raises(ValueError, match="none or several: final_norm.bias"):
        check_coverage(optimizer, model)


def test_device_and_dtype_are_decided_with_a_reason():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == (cpu, "as asked for")
    assert choose_dtype("float32", cpu) == (torch.float32, "as asked for")
    device, reason = choose_device("auto")
    assert (device.type == "cuda") == torch.cuda.is_available()
    assert "CUDA" in reason
    dtype, reason = choose_dtype("auto", cpu)
    assert ("not" in reason) == (dtype == torch.float32)


@pytest.mark.parametrize("choose, argument", [
    (choose_device, "tpu9"),
    (choose_device, "meta"),
    (choose_device, 1.5),
    (lambda dtype: choose_dtype(dtype, torch.device("cpu")), "float16"),
])
def test_an_unknown_device_or_dtype_is_refused(choose, argument):
    with pytest.raises(ValueError, match=str(argument)):
        choose(argument)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device='cuda' can't be used"):
        choose_device("cuda")


def test_micro_batch_divides_the_rows():
    assert choose_micro_batch(512, 5) == 4
    assert choose_micro_batch(7, 6) == 1
    assert choose_micro_batch(6, 64) == 6
    for size in (3, 0, "big"):
        with pytest.raises(
            ValueError, match=f"micro_batch_size={size!r} .* 8 rows"
        ):
            choose_micro_batch(8, 16, size)


def test_micro_batch_suits_a_cpu():
    cpu = torch.device("cpu")
    assert max_micro_batch(1024, cpu, 1) == 4
    assert max_micro_batch(100_000, cpu, 1) == 1
    assert max_micro_batch(1024, cpu, 1, evaluation=True) == 16


@pytest.mark.parametrize("free, reserved, rows", [
    # Below the 65,536 tokens at which compiled attention can give NaN.
    (80e9, 0, 32), (0, 80e9, 32),
    # Half of the memory, for 1,024 tokens of 100 kB.
    (2 * 10 * 1024 * 1e5, 0, 10), (9 * 1024 * 1e5, 11 * 1024 * 1e5, 10),
    (1e6, 0, 1),
])
def test_micro_batch_suits_the_memory_of_a_gpu(
        monkeypatch, free, reserved, rows):
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (int(free), 10**12)
    )
    monkeypatch.setattr(
        torch.cuda, "memory_reserved", lambda device: int(reserved)
    )
    assert max_micro_batch(1024, torch.device("cuda"), 100_000) == rows


def test_what_can_not_be_compiled_stays_eager(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert choose_compile("auto", cpu, 1e12)[0] is False
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        assert choose_compile("auto", cpu, 1e18) == (
            False, "there is no no-such-compiler"
        )
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    assert choose_compile("auto", cpu, 1e18) == (
        False, "Python's header files are not installed"
    )
    (tmp_path / "Python.h").touch()
    assert choose_compile("auto", cpu, 1e18)[0] is True


def test_the_cache_key_has_the_versions_of_what_is_measured():
    state = PlainAdam()._get_state()
    assert state["versions"] == [("torch", torch.__version__)]

    class Other(PlainAdam):
        requirements = [
            "pip::pytest~=8.4", "conda-forge::no-such-package",
        ]

    assert Other()._get_state()["versions"][1:] == [
        ("pytest", pytest.__version__), ("no-such-package", None)
    ]
