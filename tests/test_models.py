"""Models by name: each is the published one, and as fast as it can be."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark_utils.hardware.device import autocast
from benchmark_utils.models.layers import NATIVE_BFLOAT16
from benchmark_utils.models.named import MODELS, SWITCHES, describe, make_model
from benchmark_utils.models.rotary import (
    half_rotary,
    rotary,
    rotate,
    rotation_table,
)

CPU = torch.device("cpu")
ROWS = ["gpt2", "rotary", "modern"]
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12}
# A vocabulary that `modern` fills up to 64.
VOCAB_SIZE = 50


def tiny(name, seed=0, **overrides):
    return make_model(name, VOCAB_SIZE, seed, **TINY | overrides)


def draw_tokens(rows=3, length=12, vocab_size=VOCAB_SIZE):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        vocab_size, (rows, length + 1), generator=generator
    )
    return tokens[:, :-1], tokens[:, 1:]


def perturb(model, std=0.1):
    """Not only initial values: every parameter must matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += std * torch.randn(p.shape, generator=generator)


# ------------------------------------------- statements of the models, float64

def attention(q, k, v, n_head, scale, frequencies, normalise=None):
    """All scores of [batch, sequence, n_embd], the future's minus infinity."""
    q, k, v = (
        x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v)
    )
    if normalise:
        q, k = normalise(q), normalise(k)
    length, width = q.shape[-2:]
    angles = torch.arange(length)[:, None] * torch.tensor(
        frequencies, dtype=torch.float64
    )
    # Dimensions i and i + width / 2 are a complex number.
    turn = torch.polar(torch.ones_like(angles), -angles)
    q, k = (
        torch.complex(x[..., :width // 2], x[..., width // 2:]) * turn
        for x in (q, k)
    )
    scores = scale * (q @ k.mH).real
    future = torch.ones(length, length).triu(1).bool()
    heads = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return heads.transpose(1, 2).flatten(2)


def rotary_logits(w, inputs, n_layer, n_head):
    """modded-nanogpt, 1 October 2024."""
    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    x = w["token_embedding.weight"][inputs]
    width = x.shape[-1] // n_head
    frequencies = [10000 ** (-2 * i / width) for i in range(width // 2)]
    for i in range(n_layer):
        def matrix(name, i=i):
            return w[f"blocks.{i}.{name}.weight"].T

        q, k, v = (norm(x) @ matrix("attn_qkv")).chunk(3, -1)
        heads = attention(q, k, v, n_head, width**-0.5, frequencies)
        x = x + heads @ matrix("attn_proj") / math.sqrt(2 * n_layer)
        y = norm(x) @ matrix("mlp_fc")
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + y @ matrix("mlp_proj")
    return norm(x) @ w["token_embedding.weight"].T


def modern_logits(w, inputs, n_layer, n_head):
    """modded-nanogpt's optimization track, 2026."""
    eps = 1.1920929e-07

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    x = w["token_embedding.weight"][inputs]
    x = norm(x) * w["embedding_norm.weight"]
    quarter = x.shape[-1] // n_head // 4
    frequencies = [
        1024 ** (-i / (quarter - 1)) for i in range(quarter)
    ] + [0.0] * quarter
    for i in range(n_layer):
        def linear(x, name, i=i):
            name = f"blocks.{i}.{name}"
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        y = norm(x) * w[f"blocks.{i}.attn_norm.weight"]
        q, k, v = (linear(y, f"attn_{name}") for name in "qkv")
        heads = attention(q, k, v, n_head, 0.12, frequencies, norm)
        x = x + linear(heads, "attn_proj")
        y = norm(x) * w[f"blocks.{i}.mlp_norm.weight"]
        y = linear(y, "mlp_fc").clamp(min=0)**2
        x = x + linear(y, "mlp_proj")
    z = norm(x) * w["final_norm.weight"] @ w["head.weight"].T + w["head_bias"]
    return 15 * z / (z**2 + 225).sqrt()


STATEMENTS = {"rotary": rotary_logits, "modern": modern_logits}


@pytest.mark.parametrize("name", STATEMENTS)
# A small embedding shows what the norms add to the mean square.
@pytest.mark.parametrize("embedding_scale", [1.0, 1e-3])
@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float64, 1e-6), (torch.float32, 1e-4),
])
def test_equals_its_statement(name, embedding_scale, dtype, tolerance):
    model = tiny(name, embedding_dtype="float32", n_embd=32).to(dtype)
    perturb(model)
    with torch.no_grad():
        model.token_embedding.weight *= embedding_scale
    w = {
        name: p.detach().double().requires_grad_()
        for name, p in model.named_parameters()
    }
    inputs, targets = draw_tokens()
    expected_logits = STATEMENTS[name](w, inputs, 2, 2)
    expected = F.cross_entropy(
        expected_logits.flatten(0, 1), targets.flatten()
    )
    # Of the sum over tokens, where that is the model's.
    (expected * (36 if name == "modern" else 1)).backward()

    loss = model(inputs, targets)
    loss.backward()
    assert loss.dtype == dtype
    assert abs(loss.item() - expected.item()) < tolerance
    torch.testing.assert_close(
        model(inputs).double(), expected_logits, rtol=tolerance,
        atol=tolerance,
    )
    assert set(w) == {name for name, _ in model.named_parameters()}
    for key, p in model.named_parameters():
        error = (p.grad - w[key].grad).norm()
        assert error < 10 * tolerance * w[key].grad.norm(), key


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("is_training", [False, True])
def test_is_its_statement_in_bfloat16(name, is_training):
    model = tiny(name, n_embd=64)
    perturb(model, 0.02)
    inputs, targets = draw_tokens()
    w = {key: p.detach().double() for key, p in model.named_parameters()}
    expected = F.cross_entropy(
        STATEMENTS[name](w, inputs, 2, 2).flatten(0, 1), targets.flatten()
    )
    with torch.set_grad_enabled(is_training), autocast(CPU, torch.bfloat16):
        loss = model(inputs, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)


# ---------------------------------------------------------- the published ones

@pytest.fixture(scope="module", params=["rotary", "modern"])
def full_size(request):
    return request.param, make_model(request.param, 50257)


def test_full_size_has_the_published_numbers(full_size):
    name, model = full_size
    roles = {
        role: (len(tensors), sum(p.numel() for p in tensors))
        for role, tensors in model.parameter_roles().items()
    }
    expected = {
        "rotary": {
            "hidden_matrices": (48, 84_934_656),
            "embeddings": (1, 38_597_376),
            "head": (0, 0),
            "gains_and_biases": (0, 0),
        },
        "modern": {
            "hidden_matrices": (72, 84_934_656),
            "embeddings": (1, 38_633_472),
            "head": (1, 38_633_472),
            "gains_and_biases": (99, 82_944 + 50_304 + 19_968),
        },
    }[name]
    assert roles == expected
    total = {"rotary": 123_532_032, "modern": 162_354_816}[name]
    assert sum(p.numel() for p in model.parameters()) == total
    if name == "modern":
        by_kind = {"block biases": 0, "head bias": 0, "gains": 0}
        for key, p in model.named_parameters():
            if p.ndim == 1:
                kind = "gains" if key.endswith("norm.weight") else (
                    "head bias" if key == "head_bias" else "block biases")
                by_kind[kind] += p.numel()
        assert by_kind == {
            "block biases": 82_944, "head bias": 50_304, "gains": 19_968
        }
        assert model.token_embedding.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_first_loss_is_the_published_one(full_size):
    name, model = full_size
    with torch.no_grad():
        loss = model(*draw_tokens(2, 256, 50257)).item()
    if name == "modern":
        assert loss == pytest.approx(math.log(50304), abs=1e-5)
    else:
        # Published seeds: 10.926 to 11.061, while ln V is 10.825.
        assert 10.9 < loss < 11.1


def test_at_first_only_the_head_of_modern_gets_a_gradient():
    model = tiny("modern")
    model(*draw_tokens()).backward()
    with_gradient = {
        name for name, p in model.named_parameters() if p.grad.any()
    }
    assert with_gradient == {"head.weight", "head_bias"}


def test_initialisation_of_rotary_is_torchs():
    model = make_model("rotary", 5000, n_layer=2, n_embd=128, n_head=4)
    for name, p in model.named_parameters():
        bound = p.shape[1] ** -0.5
        assert p.abs().max() <= bound, name
        # A uniform variable's deviation.
        assert p.std().item() == pytest.approx(bound / 3**0.5, rel=1e-2), name


def test_initialisation_of_modern():
    model = make_model("modern", 5000, n_layer=2, n_embd=128, n_head=4)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == 1).all(), name
        elif p.ndim == 1 or "proj" in name or name == "head.weight":
            assert (p == 0).all(), name
        else:
            std = 1.0 if "embedding" in name else (0.33 / p.shape[1]) ** 0.5
            assert p.std().item() == pytest.approx(std, rel=2e-2), name


def test_half_of_the_pairs_of_modern_turn():
    """Of heads of 128, dimensions 0-31 with 64-95."""
    frequencies = half_rotary(128)
    expected = [(1 / 1024) ** (i / 31) for i in range(32)] + [0] * 32
    assert frequencies.tolist() == pytest.approx(expected)
    x = torch.randn(5, 128)
    y = rotate(x, *rotation_table(frequencies, 5))
    for still in (slice(32, 64), slice(96, 128)):
        assert torch.equal(y[:, still], x[:, still])
    for i in (0, 31):
        # At position 1, by minus the angle.
        turned = complex(x[1, i], x[1, i + 64]) * (
            complex(math.cos(expected[i]), -math.sin(expected[i]))
        )
        assert y[1, i].item() == pytest.approx(turned.real, abs=1e-6)
        assert y[1, i + 64].item() == pytest.approx(turned.imag, abs=1e-6)
    assert torch.equal(y[0], x[0])


def test_scores_of_rotary_depend_on_the_distance_alone():
    q, k = torch.randn(2, 64, dtype=torch.float64)
    table = rotation_table(rotary(64), 100)
    scores = rotate(q.expand(100, 64), *table) @ rotate(
        k.expand(100, 64), *table
    ).T
    torch.testing.assert_close(
        scores[30:, 20:-10], scores[20:-10, 10:-20], rtol=0, atol=1e-5
    )


# ------------------------------------------------------------ promises of all

@pytest.mark.parametrize("name", ROWS)
def test_initialisation_depends_on_the_seed_alone(name):
    torch.manual_seed(0)
    first = tiny(name, seed=3).state_dict()
    state = torch.get_rng_state()
    torch.rand(7)
    again = tiny(name, seed=3).state_dict()
    other = tiny(name, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    key = "token_embedding.weight"
    assert not torch.equal(first[key], other[key])
    torch.set_rng_state(state)
    tiny(name)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ROWS)
def test_attention_looks_back_only(name):
    model = tiny(name)
    perturb(model)
    tokens, _ = draw_tokens(1)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % VOCAB_SIZE
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("name, overrides", [
    *[(name, {}) for name in ROWS],
    ("gpt2", {"tied_head": False, "head_bias": True}),
    ("rotary", {"positions": "learned", "bias": True, "head_bias": True}),
])
def test_roles_hold_every_parameter_once(name, overrides):
    model = tiny(name, **overrides)
    roles = model.parameter_roles()
    ids = [id(p) for role in roles.values() for p in role]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    assert all(p.ndim == 1 for p in roles["gains_and_biases"])
    assert all(p.ndim == 2 for p in roles["hidden_matrices"])
    assert len(roles["head"]) == (not model.architecture.tied_head)


@pytest.mark.parametrize("name", ROWS)
def test_flops_are_six_per_weight_of_a_product(name):
    model = tiny(name)
    blocks = sum(
        p.numel() for p in model.blocks.parameters() if p.ndim == 2
    )
    vocab_size = 64 if name == "modern" else VOCAB_SIZE
    head = 16 * vocab_size
    assert model.architecture.matrix_weights(vocab_size) == blocks + head
    assert model.flops_per_token(10) == 6 * (blocks + head) + 12 * 2 * 16 * 10


@pytest.mark.parametrize("name, overrides", [
    *[(name, {}) for name in ROWS],
    ("gpt2", {"qk_norm": True}),
    ("gpt2", {"norm": "rms_norm", "fused_qkv": False}),
    ("rotary", {"norm_gain": True, "activation": "relu_squared"}),
    ("modern", {"positions": "learned"}),
])
@pytest.mark.parametrize("dtype, share", [
    (torch.float32, 0.8), (torch.bfloat16, 0.4),
])
def test_activation_bytes_are_those_kept_for_the_backward_pass(
        name, overrides, dtype, share):
    sizes = dict(n_layer=4, n_head=2, n_embd=128, context_length=256)
    model = make_model(name, 64, **sizes, **overrides)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # With the tensor, so that its memory is not used again.
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    tokens = torch.zeros(8, 256, dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, autocast(tokens.device, dtype):
        model(tokens, tokens)
    per_token = sum(nbytes for nbytes, _ in kept.values()) / tokens.numel()
    assert share < per_token / model.activation_bytes() < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_training", [False, True])
def test_compiles_into_one_graph(name, dtype, is_training):
    torch.compiler.reset()
    model = tiny(name)
    perturb(model)
    inputs, targets = draw_tokens()

    def loss_and_gradients():
        model.zero_grad()
        with torch.set_grad_enabled(is_training), autocast(CPU, dtype):
            loss = model(inputs, targets)
        if is_training:
            loss.backward()
        return [loss.detach()] + [
            p.grad for p in model.parameters() if p.grad is not None
        ]

    eager = loss_and_gradients()
    assert len(eager) == 1 + is_training * len(list(model.parameters()))
    # Raises an error where there is more than one graph.
    model.compile(fullgraph=True, backend="aot_eager")
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for x, y in zip(loss_and_gradients(), eager, strict=True):
        assert (x - y).norm() <= tolerance * y.norm().clamp(min=1e-6)


class CountOperations(TorchDispatchMode):

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("is_training", [False, True])
def test_no_row_loses_the_fast_operations(name, is_training):
    """In bfloat16 on a CPU: attention in blocks, and without gradients every
    product but the head's with packed weights."""
    model = tiny(name)
    with (
        torch.set_grad_enabled(is_training), autocast(CPU, torch.bfloat16),
        CountOperations() as operations,
    ):
        model(*draw_tokens())
    counts = operations.counts
    assert counts["nanogpt::blockwise_attention"] == 2
    assert not [key for key in counts if "scaled_dot_product" in key]
    matrices = len(model.parameter_roles()["hidden_matrices"])
    packed = matrices if NATIVE_BFLOAT16 and not is_training else 0
    assert counts.get("nanogpt::packed_linear", 0) == packed


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_stream_has_the_dtype_of_the_published_model(name, dtype):
    """float32, but bfloat16 where both products and embedding are."""
    model, seen = tiny(name), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda _, inputs, output: seen.extend(
                [inputs[0].dtype, output.dtype])
        )
    with autocast(CPU, dtype):
        model(*draw_tokens()).backward()
    expected = dtype if name == "modern" else torch.float32
    assert seen == 4 * [expected]
    for p in model.parameters():
        assert p.grad.dtype == p.dtype
        assert p.dtype == torch.float32 or p is model.token_embedding.weight


def test_gradient_of_the_sum_is_the_same_in_any_number_of_micro_batches():
    inputs, targets = draw_tokens(4, 8)
    gradients = {}
    for loss_gradient in ("mean", "sum"):
        for micro_batch in (4, 2):
            model = make_model(
                "modern", VOCAB_SIZE, tokens_per_step=32, **TINY,
                loss_gradient=loss_gradient, embedding_dtype="float32",
            )
            perturb(model)
            for x, y in zip(
                inputs.split(micro_batch), targets.split(micro_batch),
                strict=True
            ):
                (model(x, y) * (micro_batch / 4)).backward()
            gradients[loss_gradient, micro_batch] = [
                p.grad for p in model.parameters()
            ]
    for mean, total, halves in zip(
        gradients["mean", 4], gradients["sum", 4], gradients["sum", 2],
        strict=True
    ):
        # To the bit: 32 is a power of 2.
        assert torch.equal(32 * mean, total)
        torch.testing.assert_close(halves, total, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------- the table

def test_names_and_sizes():
    assert list(MODELS) == [
        row + size for row in ROWS for size in ("", "-small", "-tiny")
    ]
    for row in ROWS:
        for size, least, most in [
            ("-small", 2e6, 5e6), ("-tiny", 2e5, 8e5),
        ]:
            model = make_model(row + size, 257)
            number = sum(p.numel() for p in model.parameters())
            assert least < number < most
            own, full = (
                vars(MODELS[name]) for name in (row + size, row)
            )
            assert all(own[switch] == full[switch] for switch in SWITCHES)


def test_results_say_which_choices_are_not_the_names_own():
    assert describe("gpt2", {}) == "gpt2"
    assert describe("gpt2", {"n_layer": 12, "qk_norm": None}) == "gpt2"
    assert describe("gpt2-tiny", {"logit_cap": 30.0, "qk_norm": True}) == (
        "gpt2-tiny,qk_norm=True,logit_cap=30.0"
    )


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_makes_another_model(switch):
    """Any of gpt2's choices replaced by one of another row: other
    parameters, another loss, or another gradient."""
    def fingerprint(**overrides):
        model = tiny("gpt2", **overrides)
        perturb(model)
        loss = model(*draw_tokens())
        loss.backward()
        gradient = model.token_embedding.weight.grad[:VOCAB_SIZE]
        return loss.item(), gradient.norm().item()

    own, *others = SWITCHES[switch]
    for other in set(others) - {own}:
        assert fingerprint(**{switch: other}) != fingerprint(), other


@pytest.mark.parametrize("name, overrides, message", [
    ("gpt3", {}, "model='gpt3' is unknown; use one of gpt2, gpt2-small"),
    ("gpt2", {"heads": 3}, "'heads' is not a choice of a model; these are "),
    ("gpt2", {"n_head": 5}, "n_embd=768 must be a multiple of n_head=5"),
    ("gpt2", {"n_layer": 0}, "n_layer=0 must be a whole number of at least 1"),
    ("gpt2", {"n_layer": 2.0}, "n_layer=2.0 must be a whole number"),
    ("gpt2", {"qk_norm": 1}, "qk_norm=1 must be True or False"),
    ("gpt2", {"norm": "batch"}, "norm='batch' is not one of layer_norm, rms"),
    ("gpt2", {"logit_cap": -1.0}, "logit_cap=-1.0 must be a number 0 or more"),
    ("gpt2", {"norm_eps": 0.0}, "norm_eps=0.0 must be a number above 0"),
    ("gpt2", {"attention_scale": "big"}, "attention_scale='big' must be a n"),
    ("modern", {"n_head": 128}, "positions='half_rotary' needs heads whose "
     "width is a multiple of 4; n_embd=768 over n_head=128 gives 6"),
])
def test_what_cannot_be_is_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_model(name, VOCAB_SIZE, **overrides)
