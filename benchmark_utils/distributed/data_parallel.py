"""Data parallelism: gradient all-reduce and sharded optimizer updates."""
import collections
import functools
from collections.abc import Iterable, Sequence

import torch

from benchmark_utils.distributed.world import World
from benchmark_utils.optimizers.interface import parts_of

# Small enough for the first bucket to be sent early in the backward pass,
# large enough to use a network's bandwidth.
BUCKET_BYTES = 4 * 2**20


class GradientAllReduce:
    """Average of gradients over the ranks, overlapped with the backward pass.

    The backward pass reaches the parameters used last first, so buckets are
    filled in that order. A bucket is sent as soon as it and all earlier
    buckets are complete: the order is the same on every rank. A large
    gradient is a bucket of its own and is averaged in place; the others are
    copied into one buffer per bucket.

    ``parameters`` come in the order in which the model uses them.
    """

    def __init__(self, world: World, parameters: Iterable[torch.nn.Parameter]):
        self.world = world
        self._is_last_backward = False
        self._buckets: list[list[torch.nn.Parameter]] = []
        self._bucket_of: dict[torch.nn.Parameter, int] = {}
        if world.size == 1:
            return
        num_bytes, dtype = 0, None
        for parameter in reversed(list(parameters)):
            num_bytes += parameter.nbytes
            if num_bytes > BUCKET_BYTES or parameter.dtype != dtype:
                self._buckets.append([])
                num_bytes, dtype = parameter.nbytes, parameter.dtype
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def begin_last_backward(self):
        """Send gradients during the next backward pass, the step's last."""
        self._is_last_backward = True
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[tuple | None] = []

    def _on_gradient(self, parameter):
        if not self._is_last_backward:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and (
            self._missing[len(self._sent)] == 0
        ):
            self._send()

    def _send(self):
        # A parameter without a gradient has none on any rank.
        gradients = [
            (p, p.grad.flatten()) for p in self._buckets[len(self._sent)]
            if p.grad is not None
        ]
        sent = None
        if gradients:
            # A single gradient is sent as a view, without a copy.
            parameters, (flat, *others) = zip(*gradients, strict=True)
            flat = torch.cat([flat, *others]) if others else flat
            sent = parameters, flat, self.world.start_sum(flat)
        self._sent.append(sent)

    def wait_for_gradients(self):
        """Wait until every gradient is the average over the ranks."""
        self._is_last_backward = False
        if self.world.size == 1:
            return
        # Parameters that the loss does not depend on get no gradient.
        while len(self._sent) < len(self._buckets):
            self._send()
        for parameters, flat, wait in filter(None, self._sent):
            wait()
            flat.div_(self.world.size)
            parts = flat.split([p.numel() for p in parameters])
            for p, part in zip(parameters, parts, strict=True):
                p.grad = part.view_as(p)
        self._sent = []


def orthogonalisation_cost(rows, columns):
    """Multiplications in a Newton-Schulz iteration: X X^T, its square, and a
    product with X."""
    short, long = sorted((rows, columns))
    return short**2 * (short + 2 * long)


def eigenbasis_cost(rows, columns):
    """Multiplications, up to a factor, for the eigenvectors of X X^T and
    X^T X."""
    return rows**3 + columns**3


# Cost of a matrix's update, by the value of TrainingSolver.update_sharding.
WORK = {
    "orthogonalisation": orthogonalisation_cost,
    "eigenbasis": eigenbasis_cost,
}


class ShardedUpdates:
    """Optimizer updates of matrices, divided among the ranks.

    Each rank's optimizer updates only the matrices that the rank owns, keeps
    state only for these, and broadcasts the new weights. This suits methods
    whose update of a matrix depends only on that matrix and its gradients,
    and which skip a parameter without a gradient.

    Parameters
    ----------
    matrices : list of nn.Parameter
        If there are fewer matrices than ranks, every rank updates all of them.
    work : str or None
        Kind of work, a key of ``WORK``; None to share nothing.
    """

    def __init__(self, world: World,
                 matrices: Sequence[torch.nn.Parameter] = (),
                 work: str | None = None):
        self.world = world
        self.owners: dict[torch.nn.Parameter, int] = {}
        if work and 1 < world.size <= len(matrices):
            costs = [WORK[work](*matrix.shape) for matrix in matrices]
            self.owners = dict(zip(
                matrices, assign_owners(costs, world.size), strict=True
            ))

    def owned_elsewhere(self, parameter: torch.nn.Parameter) -> bool:
        return self.owners.get(parameter, self.world.rank) != self.world.rank

    def gather(self, optimizer: torch.optim.Optimizer) -> dict | None:
        """Return an optimizer's ``state_dict``, completed with what only other
        ranks hold.

        It is complete on rank 0, and the same for any number of ranks. All
        ranks must call this.
        """
        # A matrix's state is its owner's, also where an optimizer keeps some
        # for matrices that it never updates.
        self.drop_foreign_state(optimizer)
        state = optimizer.state_dict()
        # Optimizers that divide work themselves have state on few ranks, too.
        keys = self.world.gather(keys_of(state))
        if self.world.from_rank_0(not keys or all(k == keys[0] for k in keys)):
            return state
        states = self.world.gather(state)
        return functools.reduce(merge, states) if states else None

    def drop_foreign_state(self, optimizer: torch.optim.Optimizer):
        """Drop the state of matrices that other ranks own."""
        for part in parts_of(optimizer):
            for matrix in filter(self.owned_elsewhere, self.owners):
                part.state.pop(matrix, None)

    def drop_foreign_gradients(self):
        """Drop the gradients of matrices that other ranks own."""
        for matrix in self.owners:
            if self.owned_elsewhere(matrix):
                matrix.grad = None

    def broadcast_updates(self):
        """Send every matrix's new weights from its owner to all ranks."""
        waits = [
            self.world.start_broadcast(matrix.detach(), owner)
            for matrix, owner in self.owners.items()
        ]
        for wait in waits:
            wait()


def keys_of(state):
    """Return the keys of nested dicts and lists, without the values."""
    if isinstance(state, dict):
        return {key: keys_of(value) for key, value in state.items()}
    if isinstance(state, list):
        return [keys_of(value) for value in state]
    return None


def merge(first, second):
    """Merge nested dicts and lists; the first one's values win."""
    if isinstance(first, dict):
        return first | {
            key: merge(first[key], value) if key in first else value
            for key, value in second.items()
        }
    if isinstance(first, list):
        return [merge(*pair) for pair in zip(first, second, strict=True)]
    return first


def assign_owners(costs, num_ranks):
    """Return the owner of each piece of work: largest piece first, each to
    the rank with the least load."""
    owners = [0] * len(costs)
    load = collections.Counter(dict.fromkeys(range(num_ranks), 0))
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = min(load, key=lambda rank: (load[rank], rank))
        load[owners[index]] += costs[index]
    return owners
