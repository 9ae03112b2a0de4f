"""Deferred handling of signals, and requeueing of Slurm jobs.

An installed handler only records its signal; the training loop checks for it
between two steps (``pending``).
"""
import contextlib
import functools
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import Any

from benchmark_utils.console.progress import log


def _existing(*names):
    # Windows does not have all of them.
    return [
        getattr(signal, name) for name in names if hasattr(signal, name)
    ]


# Ctrl-C, kill, and a closed terminal.
ENDING = _existing("SIGINT", "SIGTERM", "SIGHUP")
# Signals that Slurm can send ahead of a time limit.
EARLY = _existing("SIGUSR1", "SIGUSR2")
# Of several signals, the last in this order counts.
ALL = ENDING + EARLY

_pending: signal.Signals | None = None
# The replaced handlers of installed signals.
_displaced: dict[int, Any] = {}


def install(numbers: Iterable[int]):
    """Record these signals from now on.

    Ignored signals (``nohup`` ignores SIGHUP) stay ignored, and outside of
    the main thread nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in set(numbers) - _displaced.keys():
        if signal.getsignal(number) != signal.SIG_IGN:
            _displaced[number] = signal.signal(number, _on_signal)


def restore(numbers: Iterable[int]):
    """Restore the previous handlers of signals."""
    for number in _displaced.keys() & set(numbers):
        signal.signal(number, _displaced.pop(number))


def pending() -> signal.Signals | None:
    """Return the recorded signal, None if there is none."""
    return _pending


def clear():
    """Forget the recorded signal."""
    global _pending
    _pending = None


def _on_signal(number, frame):
    global _pending
    # A second signal ends the command at once, unless it is an early one:
    # Slurm may send another before it or because of it.
    restore(ENDING)
    number = signal.Signals(number)
    if _pending and ALL.index(number) <= ALL.index(_pending):
        return
    _pending = number
    # Not with print, which the signal may have interrupted.
    with contextlib.suppress(OSError):
        os.write(1, (
            f"\n{number.name}: the run ends after this step, with a "
            "checkpoint. A second signal, such as Ctrl-C, ends it at once, "
            "without one.\n"
        ).encode())


def requeue(number: signal.Signals) -> bool:
    """Requeue this process's Slurm job after an early signal.

    submitit's own signal handler requeues the jobs that submitit started: it
    submits what the ``checkpoint`` of the job's function returns (submitit's
    docs/checkpointing.md). benchopt's function has no ``checkpoint``; here it
    gets one, which repeats the same work. ``_delayed`` of the handler is
    private.

    Returns False outside of Slurm, and, with a warning, if queueing fails.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number not in EARLY:
        return False
    handler: Any = _displaced.get(number)
    submission = getattr(getattr(handler, "__self__", None), "_delayed", None)
    ways: list[Callable] = [functools.partial(
        subprocess.run, ["scontrol", "requeue", job], check=True, timeout=60
    )]
    if submission is not None:
        submission.function.checkpoint = functools.partial(
            submission.__class__, submission.function
        )
        # submitit gives up after three time limits. Here there is no such
        # limit, because each run until a time limit makes progress.
        submission._timeout_countdown = 1
        # This fails for time limits that are text, such as "4:00:00".
        ways.insert(0, functools.partial(handler, number, None))
    for way in ways:
        try:
            way()
            return True
        except SystemExit:
            # submitit's handler ends with an exit.
            return True
        except Exception as error:
            if getattr(error, "returncode", None) == -signal.SIGTERM:
                # Slurm ends all processes of the job, even scontrol.
                return True
            failure = error
    log(f"WARNING: Slurm has not queued the job again: {failure}")
    return False
