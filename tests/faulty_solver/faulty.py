"""SGD that fails on one rank."""
import os
import signal
import time

import torch
import torch.distributed as dist

from benchmark_utils.solver import TrainingSolver


class Faulty(torch.optim.SGD):
    """An optimizer with a fault at its tenth step."""

    fault, rank, steps = None, 1, 0

    def step(self):
        super().step()
        self.steps += 1
        if self.steps < 10 or dist.get_rank() != self.rank:
            return
        if self.fault == "raise":
            raise MemoryError(f"out of memory on rank {self.rank}")
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(1000)


class Solver(TrainingSolver):
    name = "Faulty"

    parameters = {
        "fault": ["raise"],
        "rank": [1],
        "learning_rate": [0.1],
        "num_steps": [100],
        "warmup_steps": [0],
        "schedule, cooldown": [("linear", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        optimizer = Faulty(
            [p for role in roles.values() for p in role],
            lr=self.learning_rate,
        )
        optimizer.fault, optimizer.rank = self.fault, self.rank
        return optimizer
