"""Signals that end a command in order, and Slurm jobs that start again.

A signal that is taken is noted, and whoever trains asks for it between two
steps (``pending``).
"""
import contextlib
import functools
import os
import signal
import subprocess
import threading

from benchmark_utils.console.progress import log


def _there_are(*names):
    """Windows doesn't have all of them."""
    return [
        getattr(signal, name) for name in names if hasattr(signal, name)
    ]


# Ctrl-C, kill, and a terminal that is closed.
ENDING = _there_are("SIGINT", "SIGTERM", "SIGHUP")
# What Slurm can be asked to send ahead of a time limit.
EARLY = _there_are("SIGUSR1", "SIGUSR2")
# Where several come, the last in this order counts.
ALL = ENDING + EARLY

_pending = None
# What Python does on those that are taken, otherwise.
_displaced = {}


def install(numbers):
    """Have signals noted from now on; but not one that is ignored, as
    ``nohup`` has it, and none outside of a process's main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in set(numbers) - _displaced.keys():
        if signal.getsignal(number) != signal.SIG_IGN:
            _displaced[number] = signal.signal(number, _on_signal)


def restore(numbers):
    """Let signals have their usual effect again."""
    for number in _displaced.keys() & set(numbers):
        signal.signal(number, _displaced.pop(number))


def pending():
    """The signal that came, None if none did."""
    return _pending


def clear():
    """Be as if no signal had come."""
    global _pending
    _pending = None


def _on_signal(number, frame):
    global _pending
    # A second one ends the command at once. An early one doesn't: it may come
    # after another, which Slurm sends before or because of it.
    restore(ENDING)
    number = signal.Signals(number)
    if _pending and ALL.index(number) <= ALL.index(_pending):
        return
    _pending = number
    # Not printed: a signal may come in the middle of a print.
    with contextlib.suppress(OSError):
        os.write(1, (
            f"\n{number.name}: the run ends after this step, with a "
            "checkpoint. A second signal, such as Ctrl-C, ends it at once, "
            "without one.\n"
        ).encode())


def requeue(number):
    """Have Slurm queue the job of this process again, after an early signal.

    If submitit started the job, its own handler of the signal does it: it
    submits what the job's function says in ``checkpoint`` (submitit's
    docs/checkpointing.md). benchopt's function doesn't have that, and gets it
    here: the same work again, which finds its checkpoint. The submission is a
    private part of submitit's handler.

    Parameters
    ----------
    number : signal.Signals

    Returns
    -------
    is_queued : bool
        False outside of Slurm, and where queuing fails, with a warning.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number not in EARLY:
        return False
    handler = _displaced.get(number)
    submission = getattr(getattr(handler, "__self__", None), "_delayed", None)
    ways = [functools.partial(
        subprocess.run, ["scontrol", "requeue", job], check=True, timeout=60
    )]
    if submission is not None:
        submission.function.checkpoint = functools.partial(
            type(submission), submission.function
        )
        # submitit counts down limits of time, from three. They don't count
        # here, because what was done in each is kept.
        submission._timeout_countdown = 1
        # It can't deal with limits that are text, such as "4:00:00".
        ways.insert(0, functools.partial(handler, number, None))
    for way in ways:
        try:
            way()
            return True
        except SystemExit:
            # The last thing that submitit's handler does.
            return True
        except Exception as error:
            if getattr(error, "returncode", None) == -signal.SIGTERM:
                # Slurm ends all processes of the job, scontrol among them.
                return True
            failure = error
    log(f"WARNING: Slurm has not queued the job again: {failure}")
    return False
