"""The variants that ``speed.training`` times, and how much each computes.

A shape is a dict: the ``model``, a name of ``benchmark_utils.models.named``,
and its ``n_layer``, ``n_head``, ``n_embd`` and ``context_length``.
"""
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.shards import TokenShards, write_shard
from benchmark_utils.hardware.compilation import compile_model
from benchmark_utils.hardware.memory import keep_freed_memory
from benchmark_utils.models.named import architecture, make_model
from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.training.evaluation import evaluate
from benchmark_utils.training.trainer import Trainer

VOCAB_SIZE = 50257
VARIANTS = {
    "plain float32": "PyTorch as it comes: eager, GELU spelled out, all "
                     "logits, AdamW's defaults, memory returned to the system",
    "transformers": "Hugging Face's GPT-2 with torch.optim.AdamW, float32",
    "float32": "ours",
    "float32 compiled": "ours",
    "bfloat16": "ours",
    "bfloat16 compiled": "ours",
    "evaluate float32": "ours, forward only",
    "evaluate bfloat16": "ours, forward only",
    "evaluate bfloat16 compiled": "ours, forward only",
    "matmul float32": "the ceiling: the model's matrix products alone",
    "matmul bfloat16": "the ceiling: the model's matrix products alone",
    "forward matmul float32": "the ceiling of an evaluation",
    "forward matmul bfloat16": "the ceiling of an evaluation",
}


# Variants of gpt2 alone: of its activation, or another program's GPT-2.
ONLY_GPT2 = ("plain float32", "transformers")


def shape_of(name, sizes):
    """Return a named model's shape; sizes other than None replace its own."""
    a = architecture(name, sizes)
    return {"model": name} | {size: getattr(a, size) for size in sizes}


def split(shape):
    """Return the model's name and its sizes."""
    sizes = dict(shape)
    return sizes.pop("model"), sizes


def build(shape):
    """Build the model of a shape, untrained, on the CPU."""
    name, sizes = split(shape)
    return make_model(name, VOCAB_SIZE, **sizes)


@torch.no_grad()
def facts(shape):
    """Return a model's number of parameters, and its untrained loss on random
    tokens, in nats per token."""
    model = build(shape)
    tokens = torch.randint(
        VOCAB_SIZE, (1, shape["context_length"] + 1),
        generator=torch.Generator().manual_seed(0),
    )
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "first_loss": model(tokens[:, :-1], tokens[:, 1:]).item(),
    }


def make_step(variant, shape, rows, device):
    """Return a variant's step: a function to time, without arguments."""
    sequence_length = shape["context_length"]
    tokens = torch.randint(
        VOCAB_SIZE, (rows, sequence_length + 1), device=device
    )
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if "matmul" in variant:
        return matmul_step(variant, shape, rows * sequence_length, device)
    if variant == "plain float32":
        return plain_step(shape, inputs, targets, device)
    if variant == "transformers":
        return transformers_step(shape, inputs, targets, device)
    keep_freed_memory()
    model = build(shape).to(device)
    if "compiled" in variant:
        compile_model(model)
    dtype = getattr(
        torch, next(word for word in variant.split() if "float" in word)
    )
    loader = random_loader(rows, sequence_length)
    if variant.startswith("evaluate"):
        return lambda: evaluate(model, loader, dtype)
    optimizer = torch.optim.AdamW(
        decay_groups(model.parameter_roles(), 0.1), lr=6e-4,
        betas=(0.9, 0.95), fused=True,
    )
    trainer = Trainer(
        model, optimizer, loader, lambda step: 1.0, max_grad_norm=1.0,
        dtype=dtype,
    )
    return lambda: trainer.train_step(inputs, targets)


def random_loader(rows, sequence_length):
    """Return a loader of one batch of random tokens."""
    tokens = np.random.default_rng(0).integers(
        VOCAB_SIZE, size=rows * sequence_length + 1
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.bin"
        write_shard(path, [tokens])
        # The open file outlives its folder.
        shards = TokenShards([path], VOCAB_SIZE)
        return BatchLoader(shards, rows, sequence_length)


def plain_step(shape, inputs, targets, device):
    def gelu(x):
        inner = 0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))

    model = build(shape).to(device)
    for block in model.blocks:
        block.mlp_fc.activate = gelu
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step(shape, inputs, targets, device):
    import transformers
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=shape["n_layer"], n_head=shape["n_head"],
        n_embd=shape["n_embd"], n_positions=shape["context_length"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )).to(device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        logits = model(inputs).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def matmul_step(variant, shape, rows, device):
    """Return a function that computes each matrix product of a step once, into
    allocated memory: forward, gradients of the input and of the weight."""
    dtype = getattr(torch, variant.split()[-1])
    name, sizes = split(shape)
    a = architecture(name, sizes)
    width = a.n_embd
    qkv = [(width, 3 * width)] if a.fused_qkv else 3 * [(width, width)]
    shapes = Counter(a.n_layer * [
        *qkv, (width, width), (width, 4 * width), (4 * width, width)
    ])
    shapes[width, padded_vocabulary(a)] += 1
    products = []
    for (fan_in, fan_out), count in shapes.items():
        x = torch.randn(rows, fan_in, dtype=dtype, device=device)
        w = torch.randn(fan_out, fan_in, dtype=dtype, device=device)
        y = torch.randn(rows, fan_out, dtype=dtype, device=device)
        out = [torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)]
        pairs = [(x, w.T), (y, w), (y.T, x)]
        if variant.startswith("forward"):
            pairs = pairs[:1]
        products += [(a, b, o) for (a, b), o in zip(
            pairs, out, strict=True
        )] * count

    def step():
        for a, b, out in products:
            torch.mm(a, b, out=out)

    return step


def padded_vocabulary(a):
    """Return the rows of the head of an ``Architecture``."""
    return VOCAB_SIZE + -VOCAB_SIZE % a.vocab_multiple


def flops(variant, shape, rows):
    """Return the floating-point operations of one step of a variant."""
    name, sizes = split(shape)
    a = architecture(name, sizes)
    per_token = 6 * a.matrix_weights(padded_vocabulary(a))
    if "matmul" not in variant:
        per_token += 12 * a.n_layer * a.n_embd * a.context_length
    if variant.startswith(("evaluate", "forward")):
        per_token /= 3
    return per_token * rows * a.context_length
