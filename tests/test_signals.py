"""Signals are noted until somebody asks, and Slurm is asked to queue a job."""
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
    """Signals that were not noted, once they were taken and noted ones are
    forgotten; the first handler of each is this one."""
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


def test_what_is_taken_is_noted_and_what_is_given_back_is_not(heard):
    send(TERM)
    signals.install([TERM])
    assert heard == [TERM] and signals.pending() is None
    send(TERM)
    assert heard == [TERM] and signals.pending() is TERM
    # The second is given back by the first.
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
def test_an_early_signal_counts_beside_any_other(
        heard, numbers, counts, usual):
    """Slurm sends SIGTERM too, before it and after."""
    signals.install(signals.ALL)
    send(numbers[0])
    # Only Ctrl-C, kill and the like come through, after the first.
    send(*numbers[1:])
    assert signals.pending() is counts
    assert heard == (usual if numbers[0] in signals.EARLY else [])


@pytest.fixture
def scontrol(heard, tmp_path, monkeypatch):
    """``scontrol(code)`` puts one there that ends so; it notes what it is
    asked in a file, which is returned."""
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


def test_a_slurm_that_refuses_is_heard(scontrol, capsys):
    assert not signals.requeue(USR1)
    assert "WARNING: Slurm has not queued the job" in capsys.readouterr().out
    scontrol("exit 1")
    assert not signals.requeue(USR1)
    assert "returned non-zero exit status 1" in capsys.readouterr().out


def test_submitit_that_fails_is_done_without(scontrol):
    """It can't multiply a limit of "4:00:00", which is text."""
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


def test_a_run_goes_on_whose_lines_nobody_reads_any_more(monkeypatch):
    """Ctrl-C ends the ``tee`` of ``benchopt run ... | tee log``, too."""
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
