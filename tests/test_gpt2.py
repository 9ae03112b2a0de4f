"""The model is llm.c's GPT-2."""
import math

import pytest
import torch

from benchmark_utils.models.named import make_model


def gpt2(vocab_size, context_length, n_layer, n_head, n_embd, seed=0):
    return make_model(
        "gpt2", vocab_size, seed, context_length=context_length,
        n_layer=n_layer, n_head=n_head, n_embd=n_embd,
    )


def transformers_twin(model, n_layer, n_head, n_embd):
    """Hugging Face's GPT-2 with the same weights, and the map between the
    parameters' names: ours to (theirs, whether it is stored transposed)."""
    transformers = pytest.importorskip("transformers")
    vocab_size = model.token_embedding.num_embeddings
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=model.architecture.context_length,
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
        bos_token_id=0, eos_token_id=0,
    ))
    names = {
        "token_embedding.weight": ("transformer.wte.weight", False),
        "position_embedding.weight": ("transformer.wpe.weight", False),
        "final_norm.weight": ("transformer.ln_f.weight", False),
        "final_norm.bias": ("transformer.ln_f.bias", False),
    }
    for i in range(n_layer):
        for ours, theirs, transposed in [
            ("attn_norm", "ln_1", False), ("attn_qkv", "attn.c_attn", True),
            ("attn_proj", "attn.c_proj", True), ("mlp_norm", "ln_2", False),
            ("mlp_fc", "mlp.c_fc", True), ("mlp_proj", "mlp.c_proj", True),
        ]:
            for kind in ("weight", "bias"):
                names[f"blocks.{i}.{ours}.{kind}"] = (
                    f"transformer.h.{i}.{theirs}.{kind}",
                    transposed and kind == "weight",
                )
    theirs = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Not only initial values: every parameter must matter.
            parameter.add_(0.05 * torch.randn_like(parameter))
            other, transposed = names[name]
            theirs[other].copy_(parameter.T if transposed else parameter)
    return twin, {
        name: (theirs[other], transposed)
        for name, (other, transposed) in names.items()
    }


@pytest.mark.parametrize("vocab_size, length, n_layer, n_head, n_embd", [
    (64, 16, 2, 2, 16),
    # 3 x 400 rows: the loss is computed in two chunks.
    (1000, 400, 3, 4, 128),
])
def test_equals_transformers(vocab_size, length, n_layer, n_head, n_embd):
    torch.manual_seed(0)
    model = gpt2(vocab_size, length, n_layer, n_head, n_embd)
    twin, counterparts = transformers_twin(model, n_layer, n_head, n_embd)
    assert set(counterparts) == {n for n, _ in model.named_parameters()}
    tokens = torch.randint(vocab_size, (3, length + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    logits = model(inputs)
    expected_logits = twin(inputs).logits
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)

    loss = model(inputs, targets)
    expected_loss = -expected_logits.log_softmax(-1).gather(
        -1, targets[..., None]
    ).mean()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)

    loss.backward()
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        other, transposed = counterparts[name]
        gradient = other.grad.T if transposed else other.grad
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-3, atol=1e-5 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_full_size_has_124439808_parameters():
    model = make_model("gpt2", 50257)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_initialisation_is_llmc():
    n_layer = 8
    model = gpt2(5000, 128, n_layer, 4, 128, seed=1)
    residual_std = 0.02 / math.sqrt(2 * n_layer)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = residual_std if "_proj" in name else 0.02
            # Six standard errors of the mean and of the deviation.
            error = 6 * std / math.sqrt(parameter.numel())
            assert abs(parameter.mean().item()) < error, name
            assert abs(parameter.std().item() - std) < error, name


def test_roles():
    model = gpt2(64, 16, 2, 2, 16)
    roles = model.parameter_roles()
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in roles["embeddings"]} == {
        "token_embedding.weight", "position_embedding.weight"
    }
    assert all(p.ndim == 1 for p in roles["gains_and_biases"])
    # 4 matrices per layer; the tied head is an embedding.
    assert len(roles["hidden_matrices"]) == 8
    assert roles["head"] == []
