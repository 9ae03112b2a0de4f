"""Deferred signals, and requests to Slurm to requeue a job."""
import io
import os
import signal
import sys

import pytest

from benchmark_utils.console.progress import log
from benchmark_utils.training import signals

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signals for Slurm's use"
)
TERM, USR1, USR2 = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


def forget():
    signals.restore(signals.ALL)
    signals.clear()


@pytest.fixture
def heard():
    """The list of signals that reach this test's handlers, which are in place
    before any signal is installed."""
    heard = []
    forget()
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in signals.ALL
    }
    yield heard
    forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_an_installed_signal_is_pending_and_a_second_one_is_not(heard):
    send(TERM)
    signals.install([TERM])
    assert heard == [TERM] and signals.pending() is None
    send(TERM)
    assert heard == [TERM] and signals.pending() is TERM
    # The first signal has restored the handler.
    send(TERM)
    assert heard == [TERM, TERM]


def test_an_ignored_signal_stays_ignored(heard):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install(signals.ALL)
    send(signal.SIGHUP)
    assert signals.pending() is None and not heard


@pytest.mark.parametrize("numbers, counts, usual", [
    ([TERM, USR2], USR2, []), ([USR2, TERM], USR2, [TERM]),
    ([USR2, USR2, USR2], USR2, []), ([USR1, signal.SIGINT], USR1,
                                     [signal.SIGINT]),
])
def test_an_early_signal_takes_precedence(
        heard, numbers, counts, usual):
    """Slurm sends SIGTERM too, before it and after."""
    signals.install(signals.ALL)
    send(numbers[0])
    # After the first, only Ctrl-C, kill and the like reach their handlers.
    send(*numbers[1:])
    assert signals.pending() is counts
    assert heard == (usual if numbers[0] in signals.EARLY else [])


@pytest.fixture
def scontrol(heard, tmp_path, monkeypatch):
    """``scontrol(code)`` creates one that ends with a line of shell; returns
    the file where it records its arguments."""
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(code):
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{code}')
        program.chmod(0o755)
        return tmp_path / "asked"

    return make


def test_slurm_is_asked_to_queue_the_job_again(scontrol, monkeypatch):
    asked = scontrol("exit 0")
    assert signals.requeue(USR1) and signals.requeue(USR2)
    assert asked.read_text() == "requeue 123\n" * 2
    assert not signals.requeue(TERM)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not signals.requeue(USR1)
    assert asked.read_text() == "requeue 123\n" * 2


def test_slurm_may_end_scontrol_with_the_job(scontrol):
    scontrol("kill $$")
    assert signals.requeue(USR1)


def test_a_refusal_of_slurm_costs_a_warning(scontrol, capsys):
    assert not signals.requeue(USR1)
    assert "WARNING: Slurm has not queued the job" in capsys.readouterr().out
    scontrol("exit 1")
    assert not signals.requeue(USR1)
    assert "returned non-zero exit status 1" in capsys.readouterr().out


def test_scontrol_requeues_if_submitit_fails(scontrol):
    """submitit can't multiply a time limit that is text: "4:00:00"."""
    pytest.importorskip("submitit")
    from submitit.core.job_environment import SignalHandler
    from submitit.helpers import DelayedSubmission

    def function():
        pass

    submission = DelayedSubmission(function)
    submission.set_timeout("4:00:00", 3)
    handler = SignalHandler(None, None, submission)
    signal.signal(USR2, handler.checkpoint_and_try_requeue)
    signals.install([USR2])
    asked = scontrol("exit 0")
    assert signals.requeue(USR2)
    assert asked.read_text() == "requeue 123\n"
    with pytest.raises(TypeError):
        handler.has_timed_out()


def test_logging_to_a_closed_pipe_is_no_error(monkeypatch):
    """Ctrl-C also ends the ``tee`` of ``benchopt run ... | tee log``."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = io.TextIOWrapper(os.fdopen(writer, "wb", 0))
    monkeypatch.setattr(sys, "stdout", closed)
    log("a line")
    log("another")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        print("a line", file=closed, flush=True)
    closed.close()
