"""Sequential batches of next-token prediction from token shards.

As in modded-nanogpt's optimization track, a step takes one *global window* of
``batch_size * sequence_length`` tokens (and one more for the last target), cut
into rows regardless of documents; rank ``r`` takes the r-th contiguous slice
of rows. Nothing is shuffled. A window never straddles two shards, so the end
of a shard that is shorter than a window is dropped: a shard of 10**8 tokens
has 190 windows of 524,288 tokens (99.6 %).

The order of the tokens depends neither on the number of ranks nor on the
micro-batch.
"""
import bisect
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch

from benchmark_utils.hardware.device import KINDS

# Small steps are read in blocks of about this many tokens, to save switches
# between threads. 2 MiB as int64: they fit in the processor's cache.
BLOCK_TOKENS = 2**18
# Number of blocks read ahead of the training loop.
READ_AHEAD = 3
# Hint for sizes that don't fit the data.
DEFAULTS = (
    "(A problem or solver on the command line has its own defaults, not a "
    "configuration's. This keeps what it doesn't name: python -m "
    "benchmark_utils.harness.select CONFIG AdamW -o device=cuda. A small "
    "problem as a whole: benchopt run . --config configs/quickstart.yml.)"
)


class BatchLoader:
    """Sequential batches of one rank.

    Parameters
    ----------
    shards : TokenShards
        Tokens, in order.
    batch_size : int
        Rows per step, over all ranks.
    sequence_length : int
        Tokens per row.
    repeat : bool
        Whether to start again with the first shard after the last.
    rank, world_size : int
        Index of this process, from 0, and number of processes.

    Raises
    ------
    ValueError
        If the ranks can't share the batch equally, or no shard holds a step.
    """

    def __init__(self, shards, batch_size, sequence_length, repeat=False,
                 rank=0, world_size=1):
        if min(batch_size, sequence_length) < 1:
            raise ValueError(
                f"batch_size={batch_size} and sequence_length="
                f"{sequence_length} must be at least 1."
            )
        if batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} rows can't be shared equally by "
                f"{world_size} ranks; use a multiple of {world_size}."
            )
        self.shards = shards
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.repeat = repeat
        self.world_size = world_size
        self.rank_batch_size = batch_size // world_size
        self.tokens_per_step = batch_size * sequence_length
        self._rank_tokens = self.rank_batch_size * sequence_length
        self._rank_offset = rank * self._rank_tokens
        self._steps = [
            (len(tokens) - 1) // self.tokens_per_step
            for tokens in shards.arrays
        ]
        # Cumulative number of steps, per shard.
        self._last_step = list(accumulate(self._steps))
        if len(self) == 0:
            raise ValueError(
                f"A step of {batch_size} x {sequence_length} tokens needs "
                f"{self.tokens_per_step + 1} tokens in one shard; the "
                f"largest of {shards.paths[0].parent} holds "
                f"{max(map(len, shards.arrays))}. Use a smaller batch_size "
                f"or sequence_length, or larger shards. {DEFAULTS}"
            )

    def for_rank(self, rank, world_size):
        """Return a loader of one rank's part of the same batches."""
        return BatchLoader(
            self.shards, self.batch_size, self.sequence_length, self.repeat,
            rank, world_size,
        )

    def __len__(self):
        """Return the number of steps in one pass over the shards."""
        return self._last_step[-1]

    def check_horizon(self, num_steps):
        """Check that the shards hold ``num_steps`` steps, and the token ids
        of those shards; raise ``ValueError`` if not."""
        if num_steps > len(self) and not self.repeat:
            needed = -(-num_steps // max(self._steps))
            raise ValueError(
                f"{num_steps} steps of {self.tokens_per_step} tokens need "
                f"more training data: {len(self._steps)} shard(s) in "
                f"{self.shards.paths[0].parent} hold {len(self)} such steps; "
                f"{needed} shards of this size would do. Ask the dataset for "
                "more tokens, lower num_steps, or allow the data to be read "
                f"again with the dataset's parameter repeat=True. {DEFAULTS}"
            )
        self.shards.check_token_ids(
            1 + bisect.bisect_left(self._last_step, num_steps)
        )

    def batches(self, device="cpu", start_step=0, stop_step=None):
        """Iterate over the batches of the steps [start_step, stop_step).

        A background thread reads a bounded number of tokens ahead and widens
        them to int64. For CUDA they stay uint16, in pinned memory, and are
        widened on the device.

        Parameters
        ----------
        device : torch.device or str
        start_step, stop_step : int
            By default, one whole pass. Starting late costs nothing.

        Yields
        ------
        inputs, targets : int64 tensors, shape [rank_batch_size,
            sequence_length], on the device
        """
        device = torch.device(device)
        stop_step = len(self) if stop_step is None else stop_step
        if stop_step > len(self) and not self.repeat:
            raise ValueError(
                f"The shards hold {len(self)} steps, not {stop_step}."
            )
        shape = (self.rank_batch_size, self.sequence_length)
        blocks = self._plan(start_step, stop_step)
        with ThreadPoolExecutor(1, "token-loader") as reader:
            pending = deque()

            def read_next():
                if (block := next(blocks, None)) is not None:
                    pending.append(reader.submit(
                        self._read, *block, pin=KINDS[device.type].pins_memory
                    ))

            for _ in range(READ_AHEAD):
                read_next()
            while pending:
                block = pending.popleft().result()
                read_next()
                block = block.to(device, non_blocking=True).to(torch.int64)
                inputs = block[:, :-1].unflatten(1, shape)
                targets = block[:, 1:].unflatten(1, shape)
                # One call per block makes the views, not four per step.
                yield from zip(inputs.unbind(), targets.unbind(), strict=True)

    def _plan(self, start_step, stop_step):
        """Yield (shard, first step within it, number of steps) per block."""
        most_steps = max(1, BLOCK_TOKENS // self._rank_tokens)
        # Start with small blocks, so that training starts after one step.
        steps_per_block = 1
        step = start_step
        while step < stop_step:
            position = step % len(self)
            shard = bisect.bisect_right(self._last_step, position)
            remaining = self._last_step[shard] - position
            count = min(steps_per_block, remaining, stop_step - step)
            yield shard, self._steps[shard] - remaining, count
            step += count
            steps_per_block = min(2 * steps_per_block, most_steps)

    def _read(self, shard, first_step, num_steps, pin):
        """Read this rank's tokens of consecutive steps as a tensor of shape
        [num_steps, rank tokens + 1], uint16 in pinned memory or int64. The
        last column is the last target."""
        start = first_step * self.tokens_per_step
        # One read of all ranks' windows is hardly slower than its own alone.
        window = self.shards.arrays[shard][
            start:start + num_steps * self.tokens_per_step + 1
        ]
        first = self._rank_offset
        last = first + self._rank_tokens
        shape = num_steps, self._rank_tokens + 1
        if pin:
            block = torch.empty(shape, dtype=torch.uint16, pin_memory=True)
        else:
            # NumPy's allocator reuses more memory than torch's, which takes
            # twice as many new pages from the system.
            block = torch.from_numpy(np.empty(shape, np.int64))
        rows = block.numpy()
        rows[:, :-1] = window[:-1].reshape(num_steps, -1)[:, first:last]
        rows[:, -1] = window[last::self.tokens_per_step]
        return block


def validation_loader(shards, num_tokens, sequence_length):
    """Make a loader of the first shard's first tokens, as one batch.

    ``num_tokens`` is a multiple of ``sequence_length``. Raises ``ValueError``
    if the shard holds fewer.
    """
    available = len(shards.arrays[0]) - 1
    if num_tokens > available:
        usable = available - available % sequence_length
        raise ValueError(
            f"val_tokens={num_tokens} and the target of the last one need "
            f"{num_tokens + 1} tokens, but {shards.paths[0]} holds "
            f"{available + 1}: use val_tokens={usable} or less. {DEFAULTS}"
        )
    return BatchLoader(shards, num_tokens // sequence_length, sequence_length)
