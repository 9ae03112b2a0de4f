"""Speed of reading batches: ours, a plain read, and the limit.

    python -m speed.loader

Writes a few shards of random tokens to a temporary folder and reads them in
three ways, which take turns, so that other processes of the machine disturb
all of them: only the ratios mean something.

- ours: ``BatchLoader``
- plain: each batch a slice of the memory-mapped file, converted to int64
- bytes: the file read into one buffer, and not used: the limit

All files were just written, and are in the page cache. Each round opens them
again, as a training run does.
"""
import argparse
import statistics
import tempfile
import time

import numpy as np
import torch

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.shards import TokenShards, write_shards
from benchmark_utils.models.named import make_model

VOCAB_SIZE = 50257
# The first is a whole step of the speedrun.
SHAPES = [(512, 1024), (64, 1024), (1, 1024)]


def ours(paths, batch_size, sequence_length):
    shards = TokenShards(paths, VOCAB_SIZE)
    return BatchLoader(shards, batch_size, sequence_length).batches()


def plain(paths, batch_size, sequence_length):
    size = batch_size * sequence_length
    files = [np.memmap(path, "<u2", "r", offset=1024) for path in paths]

    def batches():
        for file in files:
            tokens = file.view(np.ndarray)
            for start in range(0, len(tokens) - size, size):
                window = torch.from_numpy(
                    tokens[start:start + size + 1].astype(np.int64)
                )
                yield (window[:-1].view(batch_size, sequence_length),
                       window[1:].view(batch_size, sequence_length))

    return batches()


def bytes_only(paths, batch_size, sequence_length):
    buffer = bytearray(2 * batch_size * sequence_length)
    files = [open(path, "rb", buffering=0) for path in paths]

    def batches():
        for file in files:
            file.seek(1024)
            while file.readinto(buffer) == len(buffer):
                yield

    return batches()


WAYS = {"ours": ours, "plain": plain, "bytes": bytes_only}


def measure(way, paths, batch_size, sequence_length, per_shard):
    """Read all batches once; return speed and times, by quantity and unit."""
    opening = time.perf_counter()
    batches = way(paths, batch_size, sequence_length)
    start = time.perf_counter()
    times = [time.perf_counter() for _ in batches]
    if len(times) != per_shard * len(paths):
        raise RuntimeError(f"{way.__name__} gave {len(times)} batches.")
    gaps = np.diff([start, *times])
    elsewhere = np.delete(gaps, slice(None, None, per_shard))
    return {
        "M tokens/s": len(gaps) * batch_size * sequence_length / 1e6
        / (times[-1] - start),
        "opening, ms": 1e3 * (start - opening),
        "first batch, ms": 1e3 * gaps[0],
        "longest gap at a shard change, ms": 1e3
        * gaps[per_shard::per_shard].max(),
        "longest gap elsewhere, ms": 1e3 * elsewhere.max(),
    }


def compare(paths, shape, per_shard, rounds):
    """Print the medians over the rounds; return our tokens/s."""
    seen = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            seen[name].append(measure(way, paths, *shape, per_shard))
    print(f"\nBatches of {shape[0]} x {shape[1]:,}, {rounds} rounds of "
          f"{per_shard * len(paths):,}: median [smallest - largest]")
    for quantity in seen["ours"][0]:
        print(f"  {quantity}")
        for name, rounds_seen in seen.items():
            values = [values[quantity] for values in rounds_seen]
            print(f"    {name:6}{statistics.median(values):10.3f}"
                  f"  [{min(values):.3f} - {max(values):.3f}]")
    rates = {
        name: [values["M tokens/s"] for values in rounds_seen]
        for name, rounds_seen in seen.items()
    }
    for name in "plain", "bytes":
        ratios = [a / b for a, b in zip(
            rates["ours"], rates[name], strict=True
        )]
        print(f"  ours / {name}: {statistics.median(ratios):.2f}"
              f"  [{min(ratios):.2f} - {max(ratios):.2f}]")
    return 1e6 * statistics.median(rates["ours"])


def train(paths, per_shard):
    """Train a small GPT-2 across a shard change, and print the share of the
    time that it waits for batches."""
    model = make_model(
        "gpt2", VOCAB_SIZE, n_layer=2, n_head=2, n_embd=64
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    loader = BatchLoader(TokenShards(paths, VOCAB_SIZE), 1, 1024)
    batches = loader.batches(start_step=per_shard - 5, stop_step=per_shard + 5)
    waited = []
    start = time.perf_counter()
    for _ in range(10):
        asked = time.perf_counter()
        inputs, targets = next(batches)
        waited.append(time.perf_counter() - asked)
        model(inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    total = time.perf_counter() - start
    batches.close()
    print(f"\nTraining a small GPT-2 here: {10 * 1024 / total:,.0f} tokens/s,"
          f" {1e6 * statistics.median(waited):.0f} us per step spent waiting "
          f"for data ({1e6 * max(waited):.0f} us at most, the first batch "
          f"included): {sum(waited) / total:.4%} of the time")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-tokens", type=int, default=20_000_000)
    parser.add_argument(
        "--training-rate", type=float, default=488_000,
        help="tokens per second that one process trains on; the default is "
        "GPT-2 on one H200 (524,288 tokens in 1,074 ms)",
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(folder, "random_train", (
            rng.integers(VOCAB_SIZE, size=1_000_000)
            for _ in range(options.shards * options.shard_tokens // 10**6)
        ), VOCAB_SIZE, options.shard_tokens)
        print(f"{len(paths)} shards of {options.shard_tokens:,} tokens, torch "
              f"{torch.__version__}, NumPy {np.__version__}")
        for shape in SHAPES:
            per_shard = (options.shard_tokens - 1) // (shape[0] * shape[1])
            rate = compare(paths, shape, per_shard, options.rounds)
            print(f"  share of the time of training at "
                  f"{options.training_rate:,.0f} tokens/s, if nothing "
                  f"overlapped: {options.training_rate / rate:.3%}")
        train(paths, per_shard)


if __name__ == "__main__":
    main()
