"""Slurm jobs that are queued again, to go on from a checkpoint."""
import functools
import os
import signal
import subprocess

from benchmark_utils.progress import say

# What Slurm can be asked to send ahead of a time limit.
EARLY_SIGNALS = [
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


def queue_again(number, handler):
    """Have Slurm queue the job of this process again, after an early signal.

    If submitit started the job, its own handler of the signal does it: it
    submits what the job's function says in ``checkpoint`` (submitit's
    docs/checkpointing.md). benchopt's function doesn't have that, and gets it
    here: the same work again, which finds its checkpoint. The submission is a
    private part of submitit's handler.

    Parameters
    ----------
    number : signal.Signals
    handler : callable, signal.Handlers or None
        What Python did on this signal before the run.

    Returns
    -------
    is_queued : bool
        False outside of Slurm, and where queuing fails, with a warning.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number not in EARLY_SIGNALS:
        return False
    submission = getattr(
        getattr(handler, "__self__", None), "_delayed", None
    )
    try:
        if submission is None:
            subprocess.run(["scontrol", "requeue", job], check=True)
            return True
        submission.function.checkpoint = functools.partial(
            type(submission), submission.function
        )
        # submitit counts down limits of time, from three. This one counts for
        # nothing, because what was done in it is kept.
        submission._timeout_countdown += 1
        handler(number, None)
    except SystemExit:
        # The last thing that submitit's handler does.
        return True
    except Exception as error:
        if getattr(error, "returncode", None) == -signal.SIGTERM:
            # Slurm ends all of the job's processes, scontrol among them.
            return True
        say(f"WARNING: Slurm has not queued the job again: {error}")
    return False
