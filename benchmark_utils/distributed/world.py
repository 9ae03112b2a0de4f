"""Ranks: the processes that train one model together, each on its device.

Every rank has the whole model and optimizer, and computes the gradients of
its rows of each batch. Their average over the ranks is the gradient of the
batch, so that all ranks take the same step. A ``World`` has the few verbs by
which ranks agree; with one rank, ``ALONE``, none of them does anything.

Nothing here starts a process: see ``benchmark_utils/distributed/workers.py``.
"""
import contextlib
import datetime
import threading
import time

import torch
import torch.distributed as dist

from benchmark_utils.hardware.device import KINDS

# A rank that doesn't answer for so many seconds is given up. One that compiles
# its model or writes to a slow disk may be silent for a minute or two.
TIMEOUT_SECONDS = 600
# Pause between two looks at whether another rank has failed.
WATCH_SECONDS = 0.5


class PeerFailure(RuntimeError):
    """Another rank has failed, ended or fallen silent."""


class World:
    """One rank's view of all ranks.

    Every verb is called by all ranks, in the same order.

    Parameters
    ----------
    rank : int
    size : int
        Number of ranks.

    Raises
    ------
    PeerFailure
        By every verb, if another rank does not answer.
    """

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size
        self._failures = self._host = None
        self._closing = threading.Event()

    def __str__(self):
        return "1 rank" if self.size == 1 else f"{self.size} ranks"

    def connect(self, store, device, timeout=TIMEOUT_SECONDS):
        """Meet the other ranks.

        Parameters
        ----------
        store : torch.distributed.Store
            The store of all ranks.
        device : torch.device
            The device of this rank. A GPU is the process's current one.
        timeout : float
            Seconds after which a silent rank is given up.
        """
        self._failures = dist.PrefixStore("failures", store)
        timeout = datetime.timedelta(seconds=timeout)
        device_id = None
        if device.type == "cuda":
            device_id = torch.device("cuda", torch.cuda.current_device())
        with self._collective():
            dist.init_process_group(
                KINDS[device.type].backend, rank=self.rank,
                world_size=self.size, store=dist.PrefixStore("group", store),
                timeout=timeout, device_id=device_id,
            )
            # Numbers are sent by the processors: no rank waits for its GPU.
            self._host = dist.new_group(backend="gloo", timeout=timeout)
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self):
        """Leave the other ranks. All do so at the same time, unless one of
        them has failed."""
        self._closing.set()
        if dist.is_initialized():
            dist.destroy_process_group()

    def report_failure(self, text):
        """Tell all ranks why one of them has failed. The first report is the
        one that counts."""
        # The store is on rank 0: without it, the others know of its end.
        with contextlib.suppress(dist.DistError):
            self._failures.compare_set("first", "", text)

    def wait_for_failure(self, seconds):
        """Wait for the first report of a failure, and return its text; None
        if there is no report after so many seconds."""
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
        """End this rank's waiting for one that has failed. NCCL would wait
        for ever."""
        while not self._closing.wait(WATCH_SECONDS):
            try:
                failed = self._failures.check(["first"])
            except dist.DistError:
                failed = True
            if failed and not self._closing.is_set():
                dist.group.WORLD.abort()
                return

    @contextlib.contextmanager
    def _collective(self):
        try:
            yield
        except RuntimeError as error:
            raise PeerFailure(
                f"Rank {self.rank} of {self.size} waited in vain for the "
                f"others: {str(error).splitlines()[0]}"
            ) from error

    def sum(self, tensor):
        """Add up a tensor over the ranks, in place, and return it."""
        if self.size > 1:
            self.start_sum(tensor)()
        return tensor

    def mean(self, number):
        """Return the mean of a number over the ranks, a float."""
        return self._of_number(number, dist.ReduceOp.SUM) / self.size

    def minimum(self, number):
        """Return the smallest of the ranks' numbers."""
        return self._of_number(number, dist.ReduceOp.MIN)

    def maximum(self, number):
        """Return the largest of the ranks' numbers."""
        return self._of_number(number, dist.ReduceOp.MAX)

    def agree(self, go_on):
        """Return whether every rank would go on."""
        return bool(self.minimum(int(go_on)))

    def _of_number(self, number, op):
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(tensor, op, group=self._host)
        return type(number)(tensor.item())

    def from_rank_0(self, value):
        """Return rank 0's value, of any type that pickle knows."""
        if self.size == 1:
            return value
        values = [value]
        with self._collective():
            dist.broadcast_object_list(values, group=self._host)
        return values[0]

    def gather(self, value):
        """Return the values of all ranks as a list on rank 0, None on the
        others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        with self._collective():
            dist.gather_object(value, values, group=self._host)
        return values

    def start_sum(self, tensor):
        """Begin to add up a tensor over the ranks, in place.

        Returns a function that waits for the end; on a GPU, it is the device
        that waits.
        """
        return self._start(dist.all_reduce, tensor)

    def start_broadcast(self, tensor, source):
        """Begin to copy a tensor from one rank to all, in place.

        Returns a function that waits for the end.
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
