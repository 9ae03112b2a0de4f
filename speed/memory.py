"""GPU memory of training and evaluation, computed without a GPU.

    python -m speed.memory
    python -m speed.memory --dtype bfloat16 --micro-batch 8 --json

The benchmark's Trainer runs a training step, and the model an evaluation, on a
fake device (speed/fake_cuda/device.py) that counts tensors as torch's
allocator does. The result is the peak that a run records as
objective_peak_memory_mib. A process needs more: CONTEXT is an estimate for
CUDA's context and fragmentation. Steps are eager; a compiled step needs less,
because its operations are fused.

The last lines list the micro-batches that fit into common cards. Needs Linux
and g++, and takes about a minute.
"""
# Before torch.
from speed.fake_cuda.device import FakeCUDA  # isort: skip

import argparse
import json

import torch

from benchmark_utils.hardware.device import autocast
from benchmark_utils.hardware.memory import (
    choose_micro_batch,
    max_micro_batch,
    peak_memory,
    release_memory,
)
from benchmark_utils.models.named import MODELS, make_model
from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.training.evaluation import evaluation_rows
from benchmark_utils.training.trainer import Trainer

VOCAB_SIZE = 50257
CUDA = torch.device("cuda")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# GiB of common cards.
CARDS = (8, 12, 16, 24, 40, 80)
# GiB that a process needs in addition to its tensors.
CONTEXT = 1.0
# Rows of a step at full size.
BATCH_SIZE = 512
# 10,485,760 tokens.
VALIDATION_ROWS = 10_240


def peaks(shape, rows, dtype):
    """Return the peak memory of a training step and an evaluation, in bytes.

    Parameters
    ----------
    shape : dict
        Arguments of ``make_model``.
    rows : int
        Rows of ``context_length`` tokens per training micro-batch.
    dtype : torch.dtype
        Precision of matrix products.
    """
    length = shape["context_length"]
    with FakeCUDA():
        release_memory(CUDA)
        model = make_model(vocab_size=VOCAB_SIZE, **shape).to(CUDA)
        optimizer = torch.optim.AdamW(
            decay_groups(model.parameter_roles(), 0.1), fused=True
        )
        trainer = Trainer(
            model, optimizer, loader=None, schedule=lambda step: 1.0,
            max_grad_norm=1.0, micro_batch_size=rows, dtype=dtype,
        )
        # The second micro-batch has gradients in memory, and the second step
        # AdamW's state.
        for _ in range(2):
            trainer.train_step(*some_tokens(2 * rows, length))
        training = peak_memory(CUDA)
        release_memory(CUDA)
        rows = evaluation_rows(VALIDATION_ROWS, length, CUDA)
        with torch.no_grad(), autocast(CUDA, dtype):
            model(*some_tokens(rows, length))
        return training, peak_memory(CUDA)


def some_tokens(rows, length):
    tokens = torch.zeros((rows, length + 1), dtype=torch.int64, device=CUDA)
    return tokens[:, :-1], tokens[:, 1:]


def chosen_rows(shape, free):
    """Return the micro-batch that a run chooses, given free bytes."""
    with FakeCUDA(total_memory=int(free)):
        model = make_model(vocab_size=VOCAB_SIZE, **shape)
        return choose_micro_batch(BATCH_SIZE, max_micro_batch(
            shape["context_length"], CUDA, model.activation_bytes()
        ))


def card_lines(shape, dtype, measured):
    """Yield a line of text on each card."""
    for card in CARDS:
        free = (card - CONTEXT) * 2**30
        fitting = [rows for rows, peak in measured.items() if max(peak) < free]
        chosen = chosen_rows(shape, free)
        yield (
            f"{card:>4} GiB, {dtype}: "
            + (f"up to {max(fitting)} rows fit" if fitting else "too small")
            + f"; auto takes {chosen}"
            + ("" if chosen in fitting else ", which does NOT fit")
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="gpt2", choices=MODELS)
    # Otherwise the model's own.
    parser.add_argument("--n-layer", type=int)
    parser.add_argument("--n-embd", type=int)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32],
        help="rows per forward pass",
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=list(DTYPES)
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    shape = dict(
        name=options.model, context_length=options.sequence_length,
        n_layer=options.n_layer, n_embd=options.n_embd,
    )
    results = []
    for dtype in options.dtype:
        measured = {}
        for rows in options.micro_batch:
            measured[rows] = peaks(shape, rows, DTYPES[dtype])
            training, evaluation = (peak / 2**30 for peak in measured[rows])
            results.append(dict(
                dtype=dtype, micro_batch=rows, training_gib=training,
                evaluation_gib=evaluation,
            ))
            if not options.json:
                print(
                    f"{dtype}, {rows:>3} x {options.sequence_length}: "
                    f"{training:6.2f} GiB in training, {evaluation:6.2f} GiB "
                    "in an evaluation", flush=True,
                )
        if not options.json:
            print(*card_lines(shape, dtype, measured), sep="\n", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
