"""A training step's work, shared by the ranks: gradients and updates."""
import collections
import functools

import torch

from benchmark_utils.optimizers.combined import parts_of

# Size of the pieces in which gradients are sent: small enough for the first to
# be on its way early in the backward pass, large enough for a network to be
# fast.
BUCKET_BYTES = 4 * 2**20


class GradientAllReduce:
    """Averages gradients over the ranks while they are computed.

    Parameters that are used last come first in the backward pass. They are
    gathered in buckets in that order, and a bucket is sent off once the
    gradients of all its parameters, and all earlier buckets, are there: the
    order is the same on every rank. A large parameter is a bucket of its own,
    whose gradient is averaged where it is; others are copied into one piece.

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
        num_bytes, dtype = 0, None
        for parameter in reversed(list(parameters)):
            num_bytes += parameter.nbytes
            if num_bytes > BUCKET_BYTES or parameter.dtype != dtype:
                self._buckets.append([])
                num_bytes, dtype = parameter.nbytes, parameter.dtype
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin_last_backward(self):
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
        parameters = [
            p for p in self._buckets[len(self._sent)] if p.grad is not None
        ]
        # A bucket without gradients has none on any rank.
        sent = None
        if parameters:
            # A single gradient is not copied: this is a view of it.
            flat, *others = [p.grad.flatten() for p in parameters]
            flat = torch.cat([flat, *others]) if others else flat
            sent = parameters, flat, self.world.start_sum(flat)
        self._sent.append(sent)

    def wait_for_gradients(self):
        """Wait until every parameter's gradient is the average."""
        self._expected = False
        if self.world.size == 1:
            return
        # Parameters on which the loss does not depend never arrive.
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
    """Multiplications of a Newton-Schulz iteration: X X^T, its square, and a
    product with X."""
    short, long = sorted((rows, columns))
    return short**2 * (short + 2 * long)


def eigenbasis_cost(rows, columns):
    """Multiplications that give the eigenvectors of X X^T and X^T X, up to a
    factor."""
    return rows**3 + columns**3


# Cost of a matrix by the kind of work that a solver names: see
# ``TrainingSolver.update_sharding``.
WORK = {
    "orthogonalisation": orthogonalisation_cost,
    "eigenbasis": eigenbasis_cost,
}


class ShardedUpdates:
    """Shares the updates of matrices among the ranks.

    Each rank's optimizer updates the matrices that the rank owns, and keeps
    state for these alone. The owner then sends its weights to all. This is
    right for a method whose update of a matrix depends only on the matrix and
    its gradients, and which leaves a parameter without a gradient as it is.

    Parameters
    ----------
    world : World
    matrices : list of nn.Parameter
        The matrices to share. If they are fewer than the ranks, every rank
        updates all of them.
    work : str or None
        Kind of the work, a key of ``WORK``; with None, nothing is shared.
    """

    def __init__(self, world, matrices=(), work=None):
        self.world = world
        self.owners = {}
        if work and 1 < world.size <= len(matrices):
            costs = [WORK[work](*matrix.shape) for matrix in matrices]
            self.owners = dict(zip(
                matrices, share(costs, world.size), strict=True
            ))

    def owned_elsewhere(self, parameter):
        return self.owners.get(parameter, self.world.rank) != self.world.rank

    def gather(self, state):
        """Return an optimizer's ``state_dict`` with the state of every matrix
        from its owner, on rank 0; None on the others.

        It is the same whatever the number of ranks.
        """
        if not self.owners:
            return state
        states = self.world.gather(state)
        return states and functools.reduce(merge, states)

    def drop_foreign_state(self, optimizer):
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
        """Get the weights of matrices that other ranks own."""
        waits = [
            self.world.start_broadcast(matrix.detach(), owner)
            for matrix, owner in self.owners.items()
        ]
        for wait in waits:
            wait()


def merge(first, second):
    """Unite nested dicts and lists: a value that both have is the first
    one's."""
    if isinstance(first, dict):
        return first | {
            key: merge(first[key], value) if key in first else value
            for key, value in second.items()
        }
    if isinstance(first, list):
        return [merge(*pair) for pair in zip(first, second, strict=True)]
    return first


def share(costs, num_ranks):
    """Return the owner of each piece of work: the largest piece is given
    first, and each to the rank with the least to do."""
    owners = [0] * len(costs)
    load = collections.Counter(dict.fromkeys(range(num_ranks), 0))
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = min(load, key=lambda rank: (load[rank], rank))
        load[owners[index]] += costs[index]
    return owners
