"""Ranks: the processes that train one model together, each on its device.

Every rank has the whole model and optimizer, and computes the gradients of
its rows of each batch. Averaged over the ranks they are those of the batch,
so that all ranks take the same step. A ``World`` is the handful of verbs by
which they agree; in a world of one rank, ``ALONE``, none of them does
anything.

Nothing here starts a process: see ``benchmark_utils/followers.py``.
"""
import collections
import contextlib
import datetime
import threading
import time

import torch
import torch.distributed as dist

from benchmark_utils.device import KINDS

# A rank that doesn't answer for this long is given up. The first step after a
# compilation, or a checkpoint on a slow disk, may take a minute or two.
TIMEOUT_SECONDS = 600
# Pause between two looks at whether another rank has failed.
WATCH_SECONDS = 0.5
# Gradients are averaged in pieces of this size, while the backward pass
# computes the next ones.
BUCKET_BYTES = 16 * 2**20


class RankLost(RuntimeError):
    """Another rank has failed, ended or fallen silent."""


class World:
    """One rank's view of all ranks.

    Every verb is called by all ranks, in the same order.

    Parameters
    ----------
    rank : int
    size : int
        Number of ranks.
    """

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size
        self._device = self._failures = None
        self._closing = threading.Event()

    def connect(self, store, device, timeout=TIMEOUT_SECONDS):
        """Meet the other ranks.

        Parameters
        ----------
        store : torch.distributed.Store
            One that all ranks share.
        device : torch.device
            Where this rank computes. A GPU is the process's current one.
        timeout : float
            Seconds after which a silent rank is given up.
        """
        self._failures = dist.PrefixStore("failures", store)
        self._device = device
        if device.type == "cuda":
            self._device = torch.device("cuda", torch.cuda.current_device())
        with self._collective():
            dist.init_process_group(
                KINDS[device.type].backend, rank=self.rank,
                world_size=self.size, store=dist.PrefixStore("group", store),
                timeout=datetime.timedelta(seconds=timeout),
                device_id=self._device if device.type == "cuda" else None,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self):
        """Leave the other ranks: all of them at the same time, unless one has
        failed."""
        self._closing.set()
        if dist.is_initialized():
            dist.destroy_process_group()

    def report_failure(self, text):
        """Tell all ranks why this one, or one that can't speak for itself,
        has failed. The first report is the one that counts."""
        # A store that is gone was on rank 0, whose end the others see.
        with contextlib.suppress(dist.DistError):
            self._failures.compare_set("first", "", text)

    def wait_for_failure(self, seconds):
        """The first report of a failure; None if there is none by then."""
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
        """Release this rank from waiting for one that has failed: NCCL would
        wait for ever."""
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
            raise RankLost(
                f"Rank {self.rank} of {self.size} waited in vain for the "
                f"others: {str(error).splitlines()[0]}"
            ) from error

    def sum(self, tensor):
        """Add up a tensor over the ranks, in place, and return it."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def mean(self, number):
        """Mean of a number over the ranks, a float."""
        return self._of_number(number, dist.ReduceOp.SUM) / self.size

    def minimum(self, number):
        return self._of_number(number, dist.ReduceOp.MIN)

    def maximum(self, number):
        return self._of_number(number, dist.ReduceOp.MAX)

    def agree(self, go_on):
        """Whether every rank would go on."""
        return bool(self.minimum(int(go_on)))

    def _of_number(self, number, op):
        if self.size == 1:
            return number
        tensor = torch.tensor(
            number, dtype=torch.float64, device=self._device
        )
        return type(number)(self._reduce(tensor, op).item())

    def _reduce(self, tensor, op):
        if self.size > 1:
            with self._collective():
                dist.all_reduce(tensor, op)
        return tensor

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

    def gather(self, value):
        """Values of all ranks, in a list, on rank 0; None on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        with self._collective():
            dist.gather_object(value, values)
        return values


ALONE = World()


class GradientAverage:
    """Averages gradients over the ranks while they are computed.

    Parameters that are used last come first in the backward pass. They are
    gathered in buckets in that order, and a bucket is sent off once the
    gradients of all its parameters, and all earlier buckets, are there: the
    order is the same on every rank.

    Parameters
    ----------
    world : World
    parameters : iterable of nn.Parameter
        In the order in which the model uses them.
    """

    def __init__(self, world, parameters):
        self.world = world
        self._expected = False
        self._buckets, self._bucket_of = [], {}
        if world.size == 1:
            return
        num_bytes = BUCKET_BYTES
        for parameter in reversed(list(parameters)):
            if num_bytes >= BUCKET_BYTES:
                self._buckets.append([])
                num_bytes = 0
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            num_bytes += parameter.nbytes
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def expect(self):
        """Say that the next backward pass is the last one of the step."""
        self._expected = True
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent = []

    def _arrived(self, parameter):
        if not self._expected:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and (
            self._missing[len(self._sent)] == 0
        ):
            self._send()

    def _send(self):
        gradients = [
            p.grad for p in self._buckets[len(self._sent)]
            if p.grad is not None
        ]
        # One more, without elements: a bucket can be without gradients.
        flat = torch.cat([
            torch.empty(0, device=self._buckets[0][0].device),
            *(gradient.flatten() for gradient in gradients),
        ])
        self._sent.append((gradients, flat, self.world.start_sum(flat)))

    def finish(self):
        """Wait until every parameter's gradient is the average."""
        self._expected = False
        if self.world.size == 1:
            return
        # Of a parameter that the loss doesn't depend on, none has arrived.
        while len(self._sent) < len(self._buckets):
            self._send()
        for gradients, flat, wait in self._sent:
            wait()
            flat.div_(self.world.size)
            parts = flat.split([gradient.numel() for gradient in gradients])
            for part, gradient in zip(parts, gradients):
                gradient.copy_(part.view_as(gradient))
        self._sent = []


def orthogonalisation_cost(rows, columns):
    """Of a Newton-Schulz iteration, in multiplications: X X^T, its square,
    and a product with X."""
    short, long = sorted((rows, columns))
    return short**2 * (short + 2 * long)


def eigenbasis_cost(rows, columns):
    """Of the eigenvectors of X X^T and X^T X, up to a factor."""
    return rows**3 + columns**3


# The work per matrix that solvers name: see ``TrainingSolver.shared_work``.
WORK = {
    "orthogonalisation": orthogonalisation_cost,
    "eigenbasis": eigenbasis_cost,
}


class SharedUpdates:
    """Shares the updates of matrices among the ranks.

    Each rank's optimizer updates the matrices that the rank owns, and keeps
    state for these alone; the owner's weights then go to all. That is right
    for a method whose update of a matrix depends on nothing but the matrix
    and its gradients, and which passes over parameters without a gradient.

    Parameters
    ----------
    world : World
    matrices : list of nn.Parameter
        With fewer of them than ranks, every rank updates all.
    work : str or None
        A key of ``WORK``; None is not to share any.
    """

    def __init__(self, world, matrices=(), work=None):
        self.world = world
        self.owners = {}
        if work and 1 < world.size <= len(matrices):
            costs = [WORK[work](*matrix.shape) for matrix in matrices]
            self.owners = dict(zip(matrices, share(costs, world.size)))

    def owned_elsewhere(self, parameter):
        return self.owners.get(parameter, self.world.rank) != self.world.rank

    def before_step(self):
        """Drop the gradients of matrices that other ranks own."""
        for matrix in self.owners:
            if self.owned_elsewhere(matrix):
                matrix.grad = None

    def after_step(self):
        """Get the weights of matrices that other ranks own."""
        waits = [
            self.world.start_broadcast(matrix.detach(), owner)
            for matrix, owner in self.owners.items()
        ]
        for wait in waits:
            wait()


def share(costs, num_ranks):
    """Owner of each piece of work: the largest piece goes first, to the rank
    with the least to do."""
    owners = [0] * len(costs)
    load = collections.Counter(dict.fromkeys(range(num_ranks), 0))
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = min(load, key=lambda rank: (load[rank], rank))
        load[owners[index]] += costs[index]
    return owners

