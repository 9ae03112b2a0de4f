"""Batches: their tokens, order, ranks and cost.

The reference is modded-nanogpt's loader in a few lines of NumPy.
"""
import gc
import struct
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark_utils.data import loader as loader_module
from benchmark_utils.data.loader import READ_AHEAD, BatchLoader
from benchmark_utils.data.shards import TokenShards, write_shard

FINEWEB = Path(__file__).parents[2] / "shared" / "data" / "fineweb10B"
WORLD_SIZES = [1, 2, 3, 4, 8]
PROPERTY = settings(derandomize=True, deadline=None, database=None)


class Counting:
    """Shards that hold 0, 1, 2... in order, in memory."""

    def __init__(self, *lengths):
        stops = np.cumsum(lengths)
        assert stops[-1] <= 2**16, "every token must be unique"
        self.arrays = [
            np.arange(stop - length, stop).astype("<u2")
            for length, stop in zip(lengths, stops, strict=True)
        ]
        self.paths = [Path("counting") / f"{i}.bin" for i in range(len(stops))]

    def check_token_ids(self, num_shards=None):
        pass


def windows(arrays, batch_size, sequence_length, rank=0, world_size=1):
    """One pass of the generator of modded-nanogpt's track 3."""
    size = batch_size * sequence_length
    for tokens in arrays:
        for start in range(0, len(tokens) - size, size):
            part = size // world_size
            start += rank * part
            window = tokens[start:start + part + 1].astype(np.int64)
            yield (window[:-1].reshape(-1, sequence_length),
                   window[1:].reshape(-1, sequence_length))


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        for tensor, array in zip(batch, reference, strict=True):
            assert tensor.dtype == torch.int64
            np.testing.assert_array_equal(tensor, array)


def sparse_shard(path, num_tokens):
    """A shard of zeros that takes no room on the disk."""
    with open(path, "wb") as file:
        file.write(struct.pack("<3i", 20240520, 1, num_tokens))
        file.truncate(1024 + 2 * num_tokens)
    return path


def loader_threads():
    return [
        thread for thread in threading.enumerate()
        if thread.name.startswith("token-loader")
    ]


# ---------------------------------------------------- which tokens, what order

@pytest.mark.parametrize("block_tokens", [1, 500, 2**18])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_token_once_and_in_order(monkeypatch, world_size, block_tokens):
    monkeypatch.setattr(loader_module, "BLOCK_TOKENS", block_tokens)
    # 24 x 8 = 192 tokens per step. One shard is shorter than a step, one has
    # exactly two steps and their last target, one a token less.
    shards = Counting(1000, 37, 385, 384, 2049, 192)
    used = [5, 0, 2, 1, 10, 0]
    ranks = [
        BatchLoader(shards, 24, 8, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [len(loader) for loader in ranks] == [18] * world_size
    steps = list(zip(*(loader.batches() for loader in ranks), strict=True))
    assert len(steps) == 18
    inputs, targets = (
        torch.cat([batch[side].flatten() for step in steps for batch in step])
        for side in (0, 1)
    )
    expected = np.concatenate([
        tokens[:count * 192] for tokens, count in zip(
            shards.arrays, used, strict=True
        )
    ])
    np.testing.assert_array_equal(inputs, expected)
    # The target of a token is the next one: these are the integers in order.
    np.testing.assert_array_equal(targets, expected.astype(int) + 1)
    for step in steps:
        assert {batch[0].shape for batch in step} == {(24 // world_size, 8)}


@pytest.mark.slow
@settings(PROPERTY, max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    rank_rows=st.integers(1, 4), sequence_length=st.integers(1, 9),
    world_size=st.sampled_from(WORLD_SIZES), data=st.data(),
)
def test_the_stream_is_modded_nanogpts(
        lengths, rank_rows, sequence_length, world_size, data):
    shards = Counting(*lengths)
    rank = data.draw(st.integers(0, world_size - 1))
    arguments = rank_rows * world_size, sequence_length
    expected = list(windows(shards.arrays, *arguments, rank, world_size))
    if not expected:
        with pytest.raises(ValueError, match="tokens in one shard"):
            BatchLoader(shards, *arguments, rank=rank, world_size=world_size)
        return
    loader = BatchLoader(
        shards, *arguments, repeat=True, rank=rank, world_size=world_size
    )
    assert len(loader) == len(expected)
    with pytest.MonkeyPatch.context() as monkeypatch:
        block = data.draw(st.integers(1, 200), label="block")
        monkeypatch.setattr(loader_module, "BLOCK_TOKENS", block)
        # By default one pass; else any steps, also of later passes.
        assert_same(loader.batches(), expected)
        start = data.draw(st.integers(0, 2 * len(expected)), label="start")
        count = data.draw(st.integers(0, 5), label="count")
        assert_same(
            loader.batches(start_step=start, stop_step=start + count),
            [expected[step % len(expected)]
             for step in range(start, start + count)],
        )


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_validation_is_the_first_tokens_in_order(world_size):
    shards = Counting(5000, 3000)
    parts = [
        next(BatchLoader(
            shards, 48, 64, rank=rank, world_size=world_size
        ).batches(stop_step=1))
        for rank in range(world_size)
    ]
    for side, first in (0, 0), (1, 1):
        tokens = torch.cat([part[side] for part in parts]).flatten()
        np.testing.assert_array_equal(
            tokens, np.arange(first, first + 48 * 64)
        )


def test_batches_that_are_kept_stay_as_they_were():
    """Memory that is still in use is not read into."""
    loader = BatchLoader(Counting(60_000), 2, 8)
    kept = list(loader.batches())
    assert_same(kept, windows(loader.shards.arrays, 2, 8))


@pytest.mark.skipif(
    not FINEWEB.is_dir(), reason="no FineWeb shards beside the repository"
)
@pytest.mark.parametrize("world_size", [1, 8])
def test_real_fineweb_batches(world_size):
    shards = TokenShards(sorted(FINEWEB.glob("*train*.bin")), 50257)
    loader = BatchLoader(
        shards, 16, 1024, rank=world_size - 1, world_size=world_size
    )
    loader.check_horizon(12)
    assert_same(loader.batches(), windows(
        shards.arrays, 16, 1024, world_size - 1, world_size
    ))


# ------------------------------------------------------- how long it may last

@pytest.fixture(scope="module")
def fineweb_sizes(tmp_path_factory):
    """FineWeb's 103 training shards, as far as their lengths go."""
    folder = tmp_path_factory.mktemp("sizes")
    return TokenShards([
        sparse_shard(folder / f"fineweb_train_{index:06d}.bin", num_tokens)
        for index, num_tokens in enumerate([10**8] * 102 + [55_324_043])
    ], 50257)


def test_fineweb_holds_19485_steps(fineweb_sizes):
    assert len(BatchLoader(fineweb_sizes, 512, 1024)) == 19_485
    fineweb_sizes = fineweb_sizes.paths
    for count, steps in (1, 190), (18, 3420), (102, 19_380):
        shards = TokenShards(fineweb_sizes[:count], 50257)
        assert len(BatchLoader(shards, 512, 1024)) == steps


@pytest.mark.parametrize("num_steps, shards", [
    (191, 2), (3250, 18), (3420, 18), (3421, 19), (5625, 30),
])
def test_a_horizon_that_is_too_long_says_how_many_shards_would_do(
        fineweb_sizes, num_steps, shards):
    loader = BatchLoader(
        TokenShards(fineweb_sizes.paths[:1], 50257), 512, 1024
    )
    with pytest.raises(ValueError, match=f"{shards} shards of this size"):
        loader.check_horizon(num_steps)
    # Not a bare StopIteration in the middle of training either.
    with pytest.raises(ValueError, match=f"190 steps, not {num_steps}"):
        next(loader.batches(stop_step=num_steps))


def test_starting_late_reads_nothing_before(fineweb_sizes):
    loader = BatchLoader(fineweb_sizes, 512, 1024)
    start = time.perf_counter()
    assert len(list(loader.batches(start_step=19_484))) == 1
    # Reading the 20 GB before would take many seconds.
    assert time.perf_counter() - start < 3


def test_the_horizon_check_reads_the_shards_it_needs(tmp_path):
    paths = [tmp_path / f"my_train_{i}.bin" for i in range(3)]
    for path, tokens in zip(
        paths, ([1] * 100, [2] * 100, [3] * 99 + [64]), strict=True
    ):
        write_shard(path, [tokens])
    for repeat in (False, True):
        loader = BatchLoader(TokenShards(paths, 64), 3, 11, repeat)
        loader.check_horizon(6)
        with pytest.raises(ValueError, match="my_train_2.bin.* id 64 "):
            loader.check_horizon(7)
    with pytest.raises(ValueError, match="my_train_2.bin.* id 64 "):
        loader.check_horizon(10**6)


def test_repeated_data_has_any_horizon():
    loader = BatchLoader(Counting(1000), 4, 8, repeat=True)
    loader.check_horizon(10**9)
    with pytest.raises(ValueError, match="repeat=True"):
        BatchLoader(Counting(1000), 4, 8).check_horizon(10**9)


# ------------------------------------------------------------ what is refused

@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_a_batch_that_ranks_cannot_share_is_refused(world_size):
    with pytest.raises(ValueError, match=(
        f"batch_size=25 rows.*by {world_size} ranks.*multiple of {world_size}"
    )):
        BatchLoader(Counting(1000), 25, 8, world_size=world_size)


@pytest.mark.parametrize("last_shard, batch_size, sequence_length, problem", [
    (1000, 0, 8, "must be at least 1"), (1000, 4, 0, "must be at least 1"),
    (192, 24, 8, "needs 193 tokens.*holds 192"),
])
def test_an_impossible_batch_is_refused(
        last_shard, batch_size, sequence_length, problem):
    BatchLoader(Counting(100, 193), 24, 8)
    with pytest.raises(ValueError, match=problem):
        BatchLoader(Counting(100, last_shard), batch_size, sequence_length)


# ------------------------------------------------------------- what it costs

@pytest.fixture
def loader():
    return BatchLoader(Counting(60_000), 8, 8)


@pytest.fixture
def blocks(loader, monkeypatch):
    """The blocks that the loader reads, as (shard, first step, steps)."""
    blocks, read = [], loader._read
    monkeypatch.setattr(loader, "_read", lambda *block, pin: (
        blocks.append(block), read(*block, pin=pin)
    )[1])
    return blocks


def test_reading_ahead_is_bounded(loader, blocks, monkeypatch):
    monkeypatch.setattr(loader_module, "BLOCK_TOKENS", 64)
    batches = loader.batches()
    for taken in range(1, 20):
        next(batches)
        deadline = time.monotonic() + 10
        while len(blocks) < taken + READ_AHEAD:
            assert time.monotonic() < deadline, "nothing is read ahead"
            time.sleep(0.001)
        time.sleep(0.002)
        assert len(blocks) == taken + READ_AHEAD
    batches.close()


def test_the_training_thread_only_makes_views():
    """Reading and widening happen in the background."""
    operations = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operations.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loader = BatchLoader(Counting(10_000), 8, 8)
    with Recorder():
        for _ in loader.batches():
            pass
    assert operations <= {"slice", "view", "as_strided", "unbind", "select"}


def test_tokens_travel_to_cuda_as_they_are_stored(loader, monkeypatch):
    """Without a GPU: the transfer is replaced by a record of it."""
    transfers = []
    real_to, real_empty = torch.Tensor.to, torch.empty

    def to(tensor, target, **options):
        if target == torch.device("cuda"):
            transfers.append((tensor.dtype, tensor.pinned, options))
            return tensor
        return real_to(tensor, target, **options)

    def empty(shape, pin_memory, **options):
        tensor = real_empty(shape, **options)
        tensor.pinned = pin_memory
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch, "empty", empty)
    assert_same(loader.batches("cuda"), windows(loader.shards.arrays, 8, 8))
    assert transfers and all(
        transfer == (torch.uint16, True, {"non_blocking": True})
        for transfer in transfers
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_cuda_are_those_on_the_cpu(loader):
    batches = list(loader.batches("cuda"))
    assert {side.device.type for batch in batches for side in batch} == {
        "cuda"
    }
    assert_same(
        [(inputs.cpu(), targets.cpu()) for inputs, targets in batches],
        windows(loader.shards.arrays, 8, 8),
    )


def stop_after(batches, how):
    next(batches)
    assert loader_threads()
    if how == "close":
        batches.close()
    elif how == "drop":
        del batches
        gc.collect()
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)
    else:
        list(batches)


@pytest.mark.parametrize("how", ["close", "drop", "throw", "exhaust"])
def test_whoever_stops_leaves_no_thread_behind(loader, how):
    stop_after(loader.batches(), how)
    assert loader_threads() == []


def test_the_first_step_waits_for_no_other(loader, blocks):
    list(loader.batches())
    sizes = [steps for *_, steps in blocks]
    assert sizes[0] == 1 and sum(sizes) == len(loader) > 900
    # Later steps are read together.
    assert len(sizes) < 20


def test_an_error_while_reading_reaches_the_training_loop(
        loader, monkeypatch):
    monkeypatch.setattr(loader_module, "BLOCK_TOKENS", 64)
    read = loader._read

    def failing(shard, first_step, num_steps, pin):
        if first_step >= 10:
            raise OSError(5, "Input/output error", "my_train_000001.bin")
        return read(shard, first_step, num_steps, pin)

    monkeypatch.setattr(loader, "_read", failing)
    batches = loader.batches()
    assert len(list(islice(batches, 10))) == 10
    with pytest.raises(OSError, match="my_train_000001.bin"):
        next(batches)
    assert loader_threads() == []
