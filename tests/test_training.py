"""The training loop against its definition, alone and under benchopt."""
import functools
import math
import random
import sys
import weakref

import numpy as np
import pytest
import torch

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.shards import TokenShards
from benchmark_utils.hardware.compilation import compile_model
from benchmark_utils.hardware.memory import choose_micro_batch, max_micro_batch
from benchmark_utils.hardware.selection import Machine, choose_device
from benchmark_utils.harness.cache_key import versions
from benchmark_utils.harness.problem import Problem, RunOptions
from benchmark_utils.models.named import make_model
from benchmark_utils.optimizers.groups import check_coverage
from benchmark_utils.solver import TrainingSolver
from benchmark_utils.training.evaluation import evaluate, evaluation_rows
from benchmark_utils.training.schedules import learning_rate_factor
from benchmark_utils.training.trainer import Trainer, seed_generators


def tiny_model():
    return make_model(
        "gpt2", 64, context_length=16, n_layer=2, n_head=2, n_embd=16
    )


def schedule(num_steps=6, warmup_steps=2, schedule="cosine", cooldown=1.0):
    return functools.partial(
        learning_rate_factor, num_steps=num_steps, warmup_steps=warmup_steps,
        schedule=schedule, cooldown=cooldown,
    )


COSINE = schedule()


@pytest.fixture
def loader(shard_dir):
    shards = TokenShards(
        [shard_dir / f"fineweb_train_00000{i}.bin" for i in (1, 2)], 64
    )
    return BatchLoader(shards, batch_size=4, sequence_length=16)


@pytest.fixture
def make_trainer(loader):
    """A function that makes a Trainer of AdamW on the tiny model. Gradients
    are longer than the clipping norm in every step."""
    def make_trainer(optimizer_class=torch.optim.AdamW, learning_rate=1e-2,
                     schedule=COSINE, max_grad_norm=0.2, **options):
        model = tiny_model()
        return Trainer(
            model, optimizer_class(model.parameters(), lr=learning_rate),
            loader, schedule, max_grad_norm=max_grad_norm, **options,
        )

    return make_trainer


@pytest.fixture
def trained(make_trainer):
    """A function that makes a Trainer and trains it for six steps."""
    def trained(**options):
        trainer = make_trainer(**options)
        trainer.train(6)
        return trainer

    return trained


def weights(trainer):
    return torch.cat([
        p.detach().flatten().clone() for p in trainer.model.parameters()
    ])


def test_equals_a_loop_written_out(trained, loader):
    """The same training, written as in a notebook."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = loader.shards.arrays[0][:].astype(np.int64)
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
    assert torch.equal(weights(trained()), expected)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_do_not_change_the_mathematics(
        trained, micro_batch_size):
    whole, split = trained(), trained(micro_batch_size=micro_batch_size)
    torch.testing.assert_close(
        weights(split), weights(whole), rtol=1e-4, atol=1e-5
    )
    assert split.pop_train_loss() == pytest.approx(
        whole.pop_train_loss(), rel=1e-6
    )


def test_training_is_reproducible_to_the_last_bit(trained):
    assert torch.equal(weights(trained()), weights(trained()))


@pytest.mark.parametrize("change", [
    {"schedule": schedule(num_steps=7)}, {"schedule": schedule(6, 3)},
    {"schedule": schedule(schedule="linear")},
    {"schedule": schedule(cooldown=0.3)}, {"max_grad_norm": 0.1},
    {"max_grad_norm": 0}, {"learning_rate": 2e-2}, {"dtype": torch.bfloat16},
])
def test_every_setting_matters(trained, change):
    difference = weights(trained(**change)) - weights(trained())
    assert difference.abs().max() > 1e-5


def test_as_many_updates_as_asked_for(make_trainer):
    trainer = make_trainer()
    for stop_step in (0, 2, 2, 5):
        trainer.train(stop_step)
        assert trainer.step == stop_step
    steps = {
        int(state["step"]) for state in trainer.optimizer.state.values()
    }
    assert steps == {5}


def test_training_in_parts_is_training_at_once(make_trainer, trained):
    trainer = make_trainer()
    for stop_step in (1, 4, 6):
        trainer.train(stop_step)
    assert torch.equal(weights(trainer), weights(trained()))


def test_the_learning_rate_is_that_of_the_last_step(make_trainer):
    trainer = make_trainer()
    assert trainer.learning_rate == 0
    for step in range(6):
        trainer.train(step + 1)
        assert trainer.learning_rate == 1e-2 * schedule()(step)


def test_training_loss_is_the_mean_since_it_was_asked_for(
        make_trainer, loader):
    trainer = make_trainer()
    assert trainer.pop_train_loss() is None
    losses = []
    for inputs, targets in loader.batches(stop_step=6):
        losses.append(trainer.accumulate_gradients(inputs, targets).item())
        trainer.optimizer.zero_grad()
        trainer.train_step(inputs, targets)
        if trainer.step == 1:
            assert trainer.pop_train_loss() == pytest.approx(losses[0])
    assert trainer.pop_train_loss() == pytest.approx(
        np.mean(losses[1:]), rel=1e-5
    )
    assert trainer.pop_train_loss() is None
    assert losses[0] == pytest.approx(
        tiny_model()(*next(loader.batches())).item(), rel=1e-6
    )


class Doubled(torch.optim.AdamW):
    """AdamW whose evaluated weights are twice the trained weights."""

    def train(self):
        self._scale(0.5)

    def eval(self):
        self._scale(2.0)

    @torch.no_grad()
    def _scale(self, factor):
        if self.state:
            for p in self.param_groups[0]["params"]:
                p.mul_(factor)


def test_evaluating_other_weights_leaves_training_unchanged(
        make_trainer, trained):
    trainer = make_trainer(optimizer_class=Doubled)
    for step in range(1, 7):
        trainer.train(step)
        with trainer.eval_weights() as model:
            # In training, the gains are near 1.
            assert model.final_norm.weight.mean().item() > 1.5
        assert trainer.model.final_norm.weight.mean().item() < 1.5
    assert torch.equal(weights(trainer), weights(trained()))


def test_training_weights_return_after_a_failed_evaluation(make_trainer):
    trainer = make_trainer(optimizer_class=Doubled)
    trainer.train(2)
    before = weights(trainer)
    with pytest.raises(RuntimeError, match="interrupted"):
        with trainer.eval_weights():
            raise RuntimeError("interrupted")
    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("micro_rows", [None, 3])
def test_evaluation_is_the_mean_over_all_rows(
        shard_dir, monkeypatch, micro_rows):
    shards = TokenShards([shard_dir / "fineweb_val_000000.bin"], 64)
    loader = BatchLoader(shards, batch_size=10, sequence_length=16)
    if micro_rows:
        monkeypatch.setattr(
            sys.modules[evaluate.__module__], "evaluation_rows",
            lambda *_: micro_rows,
        )
    model = tiny_model()
    tokens = torch.from_numpy(shards.arrays[0][:161].astype(np.int64))
    logits = model(tokens[:160].view(10, 16)).double()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[1:]
    )
    assert evaluate(model, loader) == pytest.approx(expected.item(), rel=1e-6)


def drawing_optimizer(parameters, lr):
    """SGD that adds noise from each random generator to its gradients."""
    class Noisy(torch.optim.SGD):
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.grad += torch.randn(p.shape) + np.random.rand()
                p.grad *= random.random()
            super().step()

    return Noisy(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("optimizer_class", [
    torch.optim.AdamW, Doubled, drawing_optimizer,
])
def test_a_saved_state_continues_to_the_bit(make_trainer, optimizer_class):
    seed_generators(0)
    unbroken = make_trainer(optimizer_class=optimizer_class)
    unbroken.train(6)
    seed_generators(0)
    first = make_trainer(optimizer_class=optimizer_class)
    first.train(3)
    state = first.state_dict()
    # A copy, as a file would be: the state shares memory with the weights.
    state["model"] = {k: v.clone() for k, v in state["model"].items()}
    seed_generators(1)
    second = make_trainer(optimizer_class=optimizer_class)
    second.load_state_dict(state)
    second.train(6)
    assert torch.equal(weights(second), weights(unbroken))
    assert second.learning_rate == unbroken.learning_rate
    assert second.pop_train_loss() == unbroken.pop_train_loss()


def scheduler(parameters, lr):
    return torch.optim.lr_scheduler.ConstantLR(
        torch.optim.SGD(parameters, lr=lr)
    )


@pytest.mark.parametrize("optimizer_class, message", [
    (torch.optim.LBFGS, "LBFGS.step asks for closure"),
    (scheduler, "ConstantLR is not an optimizer"),
])
def test_an_unsuitable_optimizer_is_refused(
        make_trainer, optimizer_class, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(optimizer_class=optimizer_class)


# ------------------------------------------------------ under benchopt's clock

class PlainAdam(TrainingSolver):
    """A solver outside the benchmark."""

    name = "PlainAdam"
    num_steps, warmup_steps, learning_rate = 6, 2, 1e-2
    schedule, cooldown, max_grad_norm = "cosine", 1.0, 0.2

    def get_optimizer(self, roles):
        parameters = [p for role in roles.values() for p in role]
        return torch.optim.AdamW(parameters, lr=self.learning_rate)

    def get_seed(self, **_):
        return 0


@pytest.fixture
def solver(loader):
    solver = PlainAdam()
    solver.set_objective(
        Problem(
            model="gpt2-tiny", make_model=tiny_model, train_loader=loader,
            val_tokens=64, machine=Machine.choose("cpu", "float32"),
        ),
        RunOptions(eval_every=100, compile=False),
    )
    return solver


def test_a_solver_trains_what_its_parameters_say(solver, trained):
    solver.pre_run_hook(None)
    losses = []
    solver.run(lambda: losses.append(
        solver.get_result()["report"]["train_loss"]) or True)
    expected = trained()
    # The parameters are in another order, by role, so the norm of all
    # gradients is rounded differently.
    torch.testing.assert_close(weights(solver.trainer), weights(expected))
    assert len(losses) == 7
    # A second result at the same step is the same.
    assert solver.get_result()["report"]["train_loss"] == losses[-1]


def test_warm_up_trains_throw_away_weights(solver):
    solver.pre_run_hook(None)
    solver.run(lambda: True)
    expected = weights(solver.trainer)
    solver.warm_up()
    solver.pre_run_hook(None)
    assert solver.get_result()["report"]["step"] == 0
    for fresh, parameter in zip(
        tiny_model().parameters(), solver.trainer.model.parameters(),
        strict=True
    ):
        assert torch.equal(fresh, parameter)
    solver.run(lambda: True)
    assert torch.equal(weights(solver.trainer), expected)


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(solver):
    solver.pre_run_hook(None)
    first = solver.trainer
    model_weights = weakref.ref(first.model.token_embedding.weight)
    # torch.compile gives a model a reference to itself.
    compile_model(first.model)
    solver.pre_run_hook(None)
    assert first.model is None and first.optimizer is None
    assert model_weights() is None
    assert solver.trainer.model is not None


@pytest.mark.parametrize("first, second, message", [
    (lambda ps: ps[1:], [], "none or several: token_embedding"),
    (lambda ps: [*ps, torch.zeros(3)], [], r"shape \(3,\)"),
    (list, ["final_norm.bias"], "none or several: final_norm.bias"),
])
def test_each_parameter_must_be_in_one_group(first, second, message):
    model = tiny_model()
    optimizer = torch.optim.SGD(first(list(model.parameters())), lr=1.0)
    optimizer.param_groups.append(
        {"params": list(map(model.get_parameter, second)), "lr": 0.1}
    )
    with pytest.raises(ValueError, match=message):
        check_coverage(optimizer, model)


def test_an_explicit_device_is_used():
    assert choose_device("cpu") == (torch.device("cpu"), "as asked for")


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
    assert evaluation_rows(10_240, 1024, cpu) == 16
    # A near divisor, so that all micro-batches have the same size.
    assert evaluation_rows(30, 1024, cpu) == 15
    assert evaluation_rows(17, 1024, cpu) == 16
    assert evaluation_rows(3, 1024, cpu) == 3


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


def test_the_cache_key_has_the_versions_of_what_is_measured():
    assert versions([]) == [("torch", torch.__version__)]
    required = ["pip::pytest~=8.4", "conda-forge::no-such-package"]
    assert versions(required)[1:] == [
        ("pytest", pytest.__version__), ("no-such-package", None)
    ]
