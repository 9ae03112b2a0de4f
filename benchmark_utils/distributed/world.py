"""Ranks: the processes that train one model together, each on its device.

Every rank has the whole model and optimizer, and computes the gradients of
its rows of each batch. Their average over the ranks is the gradient of the
batch, so all ranks take the same step. A ``World`` has the collective
operations; with one rank, ``ALONE``, they do nothing. ``workers.py`` starts
the processes.
"""
import contextlib
import datetime
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from benchmark_utils.hardware.device import KINDS

# Limit for a silent rank. Compiling a model or writing to a slow disk may keep
# a rank silent for a minute or two.
TIMEOUT_SECONDS = 600
# Interval between checks for the failure of another rank.
WATCH_SECONDS = 0.5


N = TypeVar("N", int, float)


class PeerFailure(RuntimeError):
    """Error of another rank: it failed, ended or stopped responding."""


class World:
    """One of ``size`` ranks, and its collective operations.

    All ranks must call the same operations in the same order.

    Raises
    ------
    PeerFailure
        By every operation, if another rank does not respond.
    """

    _failures: dist.Store
    _host: dist.ProcessGroup | None = None

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._closing = threading.Event()

    def __str__(self):
        return "1 rank" if self.size == 1 else f"{self.size} ranks"

    def connect(self, store: dist.Store, device: torch.device,
                timeout_seconds: float = TIMEOUT_SECONDS):
        """Join the process group of the ranks that share the store.

        A GPU must be the process's current device.
        """
        self._failures = dist.PrefixStore("failures", store)
        timeout = datetime.timedelta(seconds=timeout_seconds)
        device_id = None
        if device.type == "cuda":
            device_id = torch.device("cuda", torch.cuda.current_device())
        with self._collective():
            dist.init_process_group(
                KINDS[device.type].backend, rank=self.rank,
                world_size=self.size, store=dist.PrefixStore("group", store),
                timeout=timeout, device_id=device_id,
            )
            # Numbers are sent between CPUs, so no rank waits for its GPU.
            self._host = dist.new_group(backend="gloo", timeout=timeout)
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self):
        """Leave the process group: all ranks together, unless one failed."""
        self._closing.set()
        if dist.is_initialized():
            dist.destroy_process_group()

    def report_failure(self, text: str):
        """Tell all ranks why one failed; only the first report is kept."""
        # The store is on rank 0. If it is gone, the others know that.
        with contextlib.suppress(dist.DistError):
            self._failures.compare_set("first", "", text)

    def wait_for_failure(self, seconds: float) -> str | None:
        """Return the first report of a failure, None if none comes in time."""
        stop = time.monotonic() + seconds
        with contextlib.suppress(dist.DistError):
            while True:
                if self._failures.check(["first"]):
                    return self._failures.get("first").decode()
                if time.monotonic() > stop:
                    break
                time.sleep(0.05)
        return None

    def _watch(self):
        """Abort pending collectives when a rank fails: NCCL never times out
        here."""
        while not self._closing.wait(WATCH_SECONDS):
            try:
                failed = self._failures.check(["first"])
            except dist.DistError:
                failed = True
            if failed and not self._closing.is_set():
                group = dist.group.WORLD
                assert group is not None
                group.abort()
                return

    @contextlib.contextmanager
    def _collective(self):
        try:
            yield
        except RuntimeError as error:
            raise PeerFailure(
                f"Rank {self.rank} of {self.size}: timed out waiting for the "
                f"other ranks: {str(error).splitlines()[0]}"
            ) from error

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks, in place, and return it."""
        if self.size > 1:
            self.start_sum(tensor)()
        return tensor

    def mean(self, number: float) -> float:
        """Return the mean of a number over the ranks."""
        return self._of_number(number, dist.ReduceOp.SUM) / self.size

    def minimum(self, number: N) -> N:
        """Return the smallest of the ranks' numbers."""
        return self._of_number(number, dist.ReduceOp.MIN)

    def maximum(self, number: N) -> N:
        """Return the largest of the ranks' numbers."""
        return self._of_number(number, dist.ReduceOp.MAX)

    def agree(self, go_on: bool) -> bool:
        """Return whether all ranks agree to go on."""
        return bool(self.minimum(int(go_on)))

    def _of_number(self, number, op):
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(tensor, op, group=self._host)
        return type(number)(tensor.item())

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value, of any type that can be pickled."""
        if self.size == 1:
            return value
        values = [value]
        with self._collective():
            dist.broadcast_object_list(values, group=self._host)
        return values[0]

    def gather(self, value: Any) -> list | None:
        """Return the list of all ranks' values on rank 0, None elsewhere."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        with self._collective():
            dist.gather_object(value, values, group=self._host)
        return values

    def start_sum(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Start the sum of a tensor over the ranks, in place.

        Returns a function that waits for the sum; on a GPU, only the device
        waits.
        """
        return self._start(dist.all_reduce, tensor)

    def start_broadcast(
        self, tensor: torch.Tensor, source: int
    ) -> Callable[[], None]:
        """Start the copy of a tensor from one rank to all, in place.

        Returns a function that waits for the copy.
        """
        return self._start(dist.broadcast, tensor, source)

    def _start(self, collective, *arguments):
        with self._collective():
            work = collective(*arguments, async_op=True)

        def wait():
            with self._collective():
                work.wait()

        return wait


ALONE = World()
