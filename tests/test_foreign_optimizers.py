"""Optimizers that somebody else wrote train as their authors meant them, or
are refused by name.

Each class here does one thing that a published optimizer does; the loop that
its author would write is what the Trainer has to equal.
"""
import collections
import enum
import functools
import importlib
import math
import sys

import pytest
import torch

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.shards import TokenShards
from benchmark_utils.distributed.data_parallel import ShardedUpdates, keys_of
from benchmark_utils.hardware.torch_settings import restore_settings
from benchmark_utils.models.named import make_model
from benchmark_utils.optimizers.combined import CombinedOptimizer
from benchmark_utils.optimizers.hyperball import Hyperball
from benchmark_utils.training import checkpoints
from benchmark_utils.training.trainer import Trainer, seed_generators
from conftest import SOLVER

STEPS = 6


def factor(step):
    return (step + 1) / STEPS


def parameters_of(model):
    return list(model.parameters())


class Momentum(torch.optim.Optimizer):
    """SGD with momentum, written by hand."""

    # Of the momentum; None is the parameter's.
    dtype = None

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p, dtype=self.dtype)
                state["momentum"].mul_(0.9).add_(p.grad)
                p.sub_(group["lr"] * state["momentum"])


class InPlaceRate(Momentum):
    """The learning rate is one tensor for good: what is set is written into
    it, as in microsoft/dion."""

    def __init__(self, params, lr=0.1):
        self.rate = torch.tensor(lr)
        super().__init__(params, self.rate)

    def step(self):
        for group in self.param_groups:
            if group["lr"] is not self.rate:
                self.rate.copy_(torch.as_tensor(group["lr"]))
                group["lr"] = self.rate
        super().step()


class Averaging(Momentum):
    """Evaluated at the mean of all weights so far, as in SPlus or GPA."""

    training = True

    @torch.no_grad()
    def step(self):
        assert self.training
        super().step()
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p, 1 / group["steps"])

    @torch.no_grad()
    def eval(self):
        self.training = False
        for group in self.param_groups:
            for p in group["params"]:
                if "mean" in self.state[p]:
                    p.copy_(self.state[p]["mean"])

    def train(self):
        self.training = True


class Bfloat16Momentum(Momentum):
    dtype = torch.bfloat16


class IndexedState(Momentum):
    """Updates the entries of a stored index: float indices raise."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["index"] = torch.arange(0, p.numel(), 2)
                    state["kind"] = "even"
                assert state["kind"] == "even"
                p.view(-1)[state["index"]] -= (
                    group["lr"] * p.grad.view(-1)[state["index"]]
                )


class Counting(Momentum):
    """Its rate falls by a counter, a window and a generator of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.count, self.window = 0, collections.deque(maxlen=3)
        self.generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def step(self):
        self.count += 1
        self.window.append(self.count)
        draw = torch.rand((), generator=self.generator).item()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * draw / sum(self.window) * p.grad)


class SetInGroup(Momentum):
    """Options in a set, as in heavyball."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["options"] = {"a", "b"}


class Projection:
    """An object that some methods keep per matrix, as GaLore does."""

    def __init__(self, p):
        # In another order in memory than a checkpoint's file.
        self.basis = torch.linalg.svd(p.detach().cos())[0]
        self.steps, self.parent = 0, {"kind": "left"}


class Norm(enum.Enum):
    """A choice, as in distributed Shampoo."""

    SPECTRAL, FROBENIUS = 1, 2


class ObjectsInState(Momentum):
    """A projection per matrix; a function, a choice and bytes per group."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.param_groups[0] |= {
            "schedule": lambda step: 1 / (1 + step), "norm": Norm.FROBENIUS,
            "code": b"abc", "clip": math.inf,
        }

    @torch.no_grad()
    def step(self):
        group, = self.param_groups
        assert group["norm"] is Norm.FROBENIUS and group["code"] == b"abc"
        for p in group["params"]:
            if p.ndim < 2:
                continue
            state = self.state[p]
            if not state:
                state["projection"] = Projection(p)
            projection = state["projection"]
            rate = group["lr"] * group["schedule"](projection.steps)
            p.sub_(rate * projection.basis @ (projection.basis.T @ p.grad))
            projection.steps += 1


class Duck:
    """An optimizer without torch's base class, as schedulefree's wrapper."""

    def __init__(self, params, lr=0.1):
        self._base = Momentum(params, lr)
        self.step, self.zero_grad = self._base.step, self._base.zero_grad
        self.state_dict = self._base.state_dict

    state = property(lambda self: self._base.state)
    param_groups = property(lambda self: self._base.param_groups)

    def load_state_dict(self, state):
        self._base.load_state_dict(state)


class StaleWrapper(torch.optim.Optimizer):
    """Loads into its base and keeps the groups of before."""

    def __init__(self, params, lr=0.1):
        self.base = Momentum(params, lr)
        super().__init__(self.base.param_groups, {})
        self.step, self.state_dict = self.base.step, self.base.state_dict

    def load_state_dict(self, state):
        self.base.load_state_dict(state)


class CopiedGroups(StaleWrapper):
    """Has copies of its base's groups from the beginning."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.param_groups = [dict(group) for group in self.base.param_groups]


class OwnRate(Momentum):
    """Sets its rate itself, as ASGD."""

    def step(self):
        super().step()
        self.param_groups[0]["lr"] = 0.05


@pytest.fixture
def loader(shard_dir):
    shards = TokenShards([shard_dir / "fineweb_train_000001.bin"], 64)
    return BatchLoader(shards, batch_size=4, sequence_length=16)


def tiny_model():
    return make_model(
        "gpt2", 64, context_length=16, n_layer=1, n_head=2, n_embd=16
    )


@pytest.fixture
def make_trainer(loader):
    def make_trainer(make_optimizer, **options):
        model = tiny_model()
        return Trainer(
            model, make_optimizer(parameters_of(model)), loader, factor,
            **options,
        )

    return make_trainer


def plain_loop(make_optimizer, loader, steps=STEPS):
    """The model and optimizer after a loop as an author would write it."""
    model = tiny_model()
    optimizer = make_optimizer(parameters_of(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for inputs, targets in loader.batches(torch.device("cpu"), 0, steps):
        optimizer.zero_grad()
        model(inputs, targets).backward()
        optimizer.step()
        schedule.step()
    return model, optimizer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --------------------------------------------------------- the learning rate

@pytest.mark.parametrize("make_optimizer", [
    InPlaceRate,
    lambda params: torch.optim.SGD(params, lr=torch.tensor(0.1)),
    lambda params: torch.optim.AdamW(
        params, lr=torch.tensor(0.1), foreach=False
    ),
], ids=["in place", "SGD", "AdamW"])
def test_a_rate_that_is_a_tensor_follows_the_schedule(
        make_trainer, loader, make_optimizer):
    trainer = make_trainer(make_optimizer)
    trainer.train(STEPS)
    model, _ = plain_loop(make_optimizer, loader)
    assert torch.equal(weights(trainer.model), weights(model))
    assert isinstance(trainer.learning_rate, float)
    assert trainer.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize("wrap", [
    lambda one, params: Hyperball(one(params)),
    lambda one, params: split(one, Momentum)(params),
], ids=["hyperball", "combined"])
def test_wrappers_keep_a_rate_that_is_a_tensor(wrap):
    """A step at each rate equals that of an optimizer whose rate is a
    number."""
    moved = []
    for rate in (InPlaceRate, Momentum):
        params = [
            torch.nn.Parameter(torch.linspace(1, 2, 6).view(2, 3))
            for _ in range(5)
        ]
        optimizer = wrap(rate, params)
        for p in params:
            p.grad = p.detach() * torch.tensor([1.0, -2.0, 3.0])
        optimizer.step()
        moved.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.allclose(*moved, rtol=1e-6)


@pytest.mark.parametrize("make_optimizer, sentence", [
    (CopiedGroups, "CopiedGroups.param_groups are not the groups that"),
    (lambda params: CombinedOptimizer(CopiedGroups(params)),
     "are not the groups that CopiedGroups trains with"),
])
def test_a_rate_that_does_not_arrive_is_refused(
        make_trainer, make_optimizer, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_trainer(make_optimizer)


def test_a_rate_that_does_not_arrive_after_loading_is_refused(make_trainer):
    first, second = (make_trainer(StaleWrapper) for _ in range(2))
    first.train(2)
    with pytest.raises(ValueError, match="at the end of load_state_dict"):
        second.load_state_dict(first.state_dict())


def test_a_rate_that_the_optimizer_sets_itself_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match="OwnRate.step changed the learning rate from 0.01"
    ):
        make_trainer(OwnRate).train(2)


# --------------------------------------------------------- weights to evaluate

def split(first, second):
    """The first optimizer on the first three parameters, the second on the
    others."""
    return lambda params: CombinedOptimizer(
        first(params[:3]), second(params[3:])
    )


@pytest.mark.parametrize("make_optimizer", [
    Averaging, split(Averaging, Momentum), split(Momentum, Averaging),
    split(Averaging, Averaging),
], ids=["alone", "first", "second", "both"])
def test_the_weights_that_a_part_averages_are_evaluated(
        make_trainer, loader, make_optimizer):
    trainer = make_trainer(make_optimizer)
    trainer.train(STEPS)
    model, optimizer = plain_loop(make_optimizer, loader)
    assert torch.equal(weights(trainer.model), weights(model))
    for one in getattr(optimizer, "optimizers", [optimizer]):
        if hasattr(one, "eval"):
            one.eval()
    with trainer.eval_weights() as averaged:
        assert torch.equal(weights(averaged), weights(model))
        assert not torch.equal(weights(averaged), weights(tiny_model()))
    # Training goes on.
    trainer.train(STEPS + 1)


def test_schedule_free_trains_as_a_part(make_trainer):
    schedulefree = pytest.importorskip("schedulefree")
    trainer = make_trainer(split(
        functools.partial(schedulefree.AdamWScheduleFree, lr=1e-2), Momentum
    ))
    trainer.train(STEPS)
    trained = weights(trainer.model)
    with trainer.eval_weights() as averaged:
        assert not torch.equal(weights(averaged), trained)
    assert torch.equal(weights(trainer.model), trained)


# --------------------------------------------------------- saved and resumed

RESUMABLE = [
    Momentum, InPlaceRate, Averaging, Bfloat16Momentum, IndexedState,
    Counting, SetInGroup, ObjectsInState, Duck,
    split(Bfloat16Momentum, Counting),
    lambda params: Hyperball(Bfloat16Momentum(
        [p for p in params if p.norm() > 0]
    )),
]


@pytest.mark.parametrize("make_optimizer", RESUMABLE, ids=[
    getattr(each, "__name__", str(i)) for i, each in enumerate(RESUMABLE)
])
@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_goes_on_from_a_checkpoint_is_equal_to_the_bit(
        loader, tmp_path, make_optimizer, step):
    def start():
        model = tiny_model()
        # A hyperball has no place for zeros.
        torch.manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        return Trainer(
            model, make_optimizer(parameters_of(model)), loader, factor
        )

    unbroken, first, second = start(), start(), start()
    unbroken.train(STEPS)
    first.train(step)
    checkpoints.save(tmp_path, step, first.state_dict())
    path, = checkpoints.newest_first(tmp_path)
    second.load_state_dict(checkpoints.load(path))
    second.train(STEPS)
    assert torch.equal(weights(second.model), weights(unbroken.model))
    assert second.learning_rate == unbroken.learning_rate


def test_what_can_not_be_saved_is_named(make_trainer, tmp_path):
    trainer = make_trainer(Momentum)
    trainer.train(1)
    trainer.optimizer.state_dict()["state"][0]["log"] = iter([])
    with pytest.raises(
        TypeError, match=r"\['optimizer'\]\['state'\]\[0\]\['log'\] "
        "is a list_iterator: it can't be saved"
    ):
        checkpoints.save(tmp_path, 0, trainer.state_dict())


def test_a_checkpoint_loads_no_code(make_trainer, tmp_path):
    """An object's class must be there already: its module isn't imported."""
    (tmp_path / "unloaded_module.py").write_text("raise SystemExit(3)")
    trainer = make_trainer(ObjectsInState)
    trainer.train(1)
    state = trainer.state_dict()
    packed = state["optimizer"]["state"][0]["projection"]
    packed["<object>"][0] = "unloaded_module"
    with pytest.raises(ValueError, match="class unloaded_module.Projection"):
        trainer.load_state_dict(state)


# By module: an optimizer of a package that somebody else wrote.
PACKAGES = {
    "lion_pytorch": lambda m, params: m.Lion(params, lr=1e-3),
    "prodigyopt": lambda m, params: m.Prodigy(params, lr=1.0),
    "dadaptation": lambda m, params: m.DAdaptAdam(params, lr=1.0),
    "came_pytorch": lambda m, params: m.CAME(params, lr=1e-3),
    "kron_torch": lambda m, params: m.Kron(params, lr=1e-3),
    "heavyball": lambda m, params: m.SOAP(params, lr=1e-3),
    "torchao.optim": lambda m, params: m.AdamW8bit(params, lr=1e-3),
    "schedulefree": lambda m, params: m.RAdamScheduleFree(params, lr=1e-3),
    "pytorch_optimizer": lambda m, params: split(
        lambda some: m.GaLore([{
            "params": some, "rank": 4, "update_proj_gap": 2, "scale": 1.0,
            "projection_type": "std",
        }], lr=1e-3), m.SPlus,
    )(params),
}


@pytest.mark.slow
@pytest.mark.parametrize("module", PACKAGES)
def test_optimizers_of_other_packages_train_and_resume_to_the_bit(
        loader, tmp_path, request, module):
    # Compiling an optimizer takes up to a minute.
    torch.compiler.set_stance("force_eager")
    request.addfinalizer(lambda: torch.compiler.set_stance("default"))
    package = pytest.importorskip(module)

    def make_optimizer(params):
        seed_generators(0)
        return PACKAGES[module](package, params)

    def start():
        model = tiny_model()
        return Trainer(
            model, make_optimizer(parameters_of(model)), loader, factor
        )

    unbroken, first, second = start(), start(), start()
    seed_generators(1)
    unbroken.train(STEPS)
    seed_generators(1)
    first.train(3)
    checkpoints.save(tmp_path, 3, first.state_dict())
    path, = checkpoints.newest_first(tmp_path)
    second.load_state_dict(checkpoints.load(path))
    second.train(STEPS)
    assert torch.equal(weights(second.model), weights(unbroken.model))
    assert not torch.equal(weights(second.model), weights(tiny_model()))


class TwoRanks:
    """Rank 0 of two; what the other sends is given."""

    size, rank = 2, 0

    def __init__(self, other):
        self.sent = iter([keys_of(other.state_dict()), other.state_dict()])

    def gather(self, value):
        return [value, next(self.sent)]

    def from_rank_0(self, value):
        return value


def with_momenta(matrices, momenta):
    """An optimizer after a step, with momenta of these values; None is a
    matrix that has no state."""
    optimizer = Momentum(matrices)
    for matrix, value in zip(matrices, momenta, strict=True):
        if value is not None:
            optimizer.state[matrix]["momentum"] = torch.full((2, 2), value)
    return optimizer


@pytest.mark.parametrize("mine, others, work", [
    # Rank 0 owns the first matrix, and has zeros for the second.
    ([3.0, 0.0], [None, 4.0], "orthogonalisation"),
    # The optimizer divides its work itself.
    ([3.0, None], [None, 4.0], None),
])
def test_the_state_of_a_matrix_comes_from_its_owner(mine, others, work):
    matrices = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    sharded = ShardedUpdates(
        TwoRanks(with_momenta(matrices, others)), matrices, work
    )
    assert not work or list(sharded.owners.values()) == [0, 1]
    state = sharded.gather(with_momenta(matrices, mine))
    assert [
        state["state"][i]["momentum"][0, 0].item() for i in range(2)
    ] == [3.0, 4.0]


# ------------------------------------------------------ what is no optimizer

def test_a_frozen_parameter_is_refused_by_name(make_trainer):
    def freezing(params):
        params[0].requires_grad_(False)
        return Momentum(params)

    with pytest.raises(ValueError, match="get_optimizer froze token_embed"):
        make_trainer(freezing)


def test_an_optimizer_without_torchs_base_class_trains(make_trainer, loader):
    trainer = make_trainer(Duck)
    trainer.train(STEPS)
    model, _ = plain_loop(Momentum, loader)
    assert torch.equal(weights(trainer.model), weights(model))


def test_a_group_without_a_rate_is_refused(make_trainer):
    def without(params):
        optimizer = Momentum(params)
        del optimizer.param_groups[0]["lr"]
        return optimizer

    with pytest.raises(ValueError, match="Momentum has a group without .lr."):
        make_trainer(without)


# ------------------------------------------------------- solvers in benchopt

def solver_file(folder, name, body, header=""):
    """A solver file that differs from the plain one in get_optimizer."""
    path = folder / f"{name.lower()}.py"
    path.write_text(SOLVER.replace('"Mine"', f'"{name}"').replace(
        "        parameters = [p", f"{body}        parameters = [p"
    ).replace("import torch\n", f"import torch\n{header}", 1))
    return str(path)


def losses(frame, name):
    return frame[frame.solver_name.str.startswith(name)].value.tolist()


@pytest.mark.parametrize("where", ["header", "body"])
def test_what_a_solver_sets_in_torch_ends_with_its_run(run, tmp_path, where):
    setting = (
        "torch.set_default_dtype(torch.float64)\n"
        "torch.set_float32_matmul_precision('medium')\n"
        "torch.use_deterministic_algorithms(True)\n"
    )
    indented = "".join(f"        {line}\n" for line in setting.splitlines())
    first = solver_file(
        tmp_path, "First", body=indented if where == "body" else "",
        header=setting if where == "header" else "",
    )
    try:
        frame = run({first: {}, "AdamW": {}})
        assert losses(frame, "AdamW") == losses(run({"AdamW": {}}), "AdamW")
    finally:
        restore_settings()


def test_weights_that_change_in_the_backward_pass_are_refused(
        run, tmp_path, capsys):
    path = solver_file(tmp_path, "Hooked", body=(
        "        def update(p):\n"
        "            p.data.sub_(0.01 * p.grad)\n"
        "        for role in roles.values():\n"
        "            for p in role:\n"
        "                p.register_post_accumulate_grad_hook(update)\n"
    ))
    with pytest.raises(RuntimeError):
        run({path: {}})
    assert "Hooked changes weights in the backward" in capsys.readouterr().err


def test_gradients_may_be_rescaled_in_the_backward_pass(run, tmp_path):
    path = solver_file(tmp_path, "Scaled", body=(
        "        for role in roles.values():\n"
        "            for p in role:\n"
        "                p.register_hook(lambda grad: 2 * grad)\n"
    ))
    assert len(losses(run({path: {}}), "Scaled")) > 2


def test_a_checkpoint_is_tried_before_the_first_step(run, tmp_path, capsys):
    path = solver_file(tmp_path, "Unsaved", body=(
        "        optimizer = torch.optim.SGD(\n"
        "            [p for role in roles.values() for p in role],\n"
        "            lr=0.01, momentum=0.9)\n"
        "        optimizer.register_step_post_hook(lambda *_: [\n"
        "            state.update(log=iter([]))\n"
        "            for state in optimizer.state.values()])\n"
        "        return optimizer\n"
    ))
    run({path: {}})
    output = capsys.readouterr().out
    warning = (
        "WARNING: Unsaved is trained without checkpoints: state['optimizer']"
        "['state'][0]['log'] is a list_iterator: it can't be saved."
    )
    assert warning in output
    assert output.index(warning) < output.index("step 0 of 10")


def test_results_belong_to_the_modules_that_a_solver_file_imports(
        run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BENCHOPT_CACHE", str(tmp_path / "cache"))
    helper = tmp_path / "my_helper.py"
    helper.write_text("LEARNING_RATE = 0.01\n")
    path = solver_file(tmp_path, "Helped", body=(
        "        import my_helper\n"
        "        self.learning_rate = my_helper.LEARNING_RATE\n"
    ))
    before = losses(run({path: {}}, no_cache=False), "Helped")
    assert losses(run({path: {}}, no_cache=False), "Helped") == before
    helper.write_text("LEARNING_RATE = 0.02\n")
    sys.modules.pop("my_helper", None)
    importlib.invalidate_caches()
    assert losses(run({path: {}}, no_cache=False), "Helped") != before
