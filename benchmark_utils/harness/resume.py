"""A killed run goes on where its last checkpoint was.

The Trainer knows its state and ``training.checkpoints`` the files. What is
added here is benchopt's: the rows and the clock of a run, which are private
parts of its callback and touched nowhere else (``get_clock``, ``set_clock``).
"""
import contextlib
import hashlib
import json
import os
import shutil
import time

from benchopt.config import get_data_path

from benchmark_utils.console.progress import log, only_warned
from benchmark_utils.hardware.device import dtype_name
from benchmark_utils.training import checkpoints, signals

# With "auto": seconds between two checkpoints, unless writing one takes more
# than this share of them.
AUTO_SECONDS = 600
MAX_SHARE = 0.01


class Resumable:
    """A run that writes checkpoints, finds them again, and ends in order.

    Parameters
    ----------
    solver : TrainingSolver
        About to train with its ``trainer``.
    callback : benchopt's callback
    every : "auto", int or str
        Steps between checkpoints, or minutes as in "5min"; 0 is off. "auto"
        is about ten minutes, and at most 1 % of the time.
    resume : bool
        Whether to look for a checkpoint.
    """

    # Whether this process has kept anything, of this run or of one before.
    has_progress = False

    def __init__(self, solver, callback, every, resume):
        self.trainer, self.callback = solver.trainer, callback
        self.world = solver.world
        self.every, self._resumes = every, resume
        self.is_on = every != 0
        self.times_resumed = 0
        self._seconds = AUTO_SECONDS
        if isinstance(every, str) and every != "auto":
            self._seconds = 60 * float(every.removesuffix("min"))
        if self.is_on:
            who, self._how = identify(solver)
            # Beside the data, which may be on a larger disk.
            self._run_folder = get_data_path("checkpoints") / _digest(who)
            self._folder = self._run_folder / _digest(self._how)
            if resume:
                self._resume()
        self._due = time.monotonic() + self._seconds

    def _resume(self):
        # Rank 0 says which, and all ranks read it.
        for path in self.world.from_rank_0(
            list(checkpoints.newest_first(self._folder))
        ):
            try:
                state = checkpoints.load(path)
            except ValueError as error:
                log(f"WARNING: {error} It is not used.")
                state = None
            if not self.world.agree(state is not None):
                continue
            self.trainer.load_state_dict(state["trainer"])
            # Followers have no clock.
            if hasattr(self.callback, "time_iter"):
                set_clock(self.callback, state["clock"])
            self.times_resumed = state["times_resumed"] + 1
            log(f"Continues from step {self.trainer.step}, after "
                f"{state['clock']['seconds']:.0f} s of training: {path}")
            return
        self._explain_others()

    def _explain_others(self):
        """Say why checkpoints of the same run, otherwise computed, are not
        used."""
        for path in self._run_folder.glob("*/how.json"):
            if path.parent == self._folder:
                continue
            try:
                other = json.loads(path.read_text())
                changed = "another " + ", ".join(
                    name for name, value in self._how.items()
                    if other.get(name) != value
                )
            except (OSError, ValueError) as error:
                changed = f"something that can't be read ({error})"
            log(f"WARNING: {path.parent} has a checkpoint of this run, but of "
                f"{changed}: it is not used, and stays. The run starts at "
                "step 0.")

    def __enter__(self):
        if self.is_on:
            signals.install(signals.ALL)
        return self

    def __exit__(self, *error):
        signals.restore(signals.ENDING)

    def before_callback(self):
        """Write a checkpoint if one is due. benchopt's clock stands still
        meanwhile.

        Raises
        ------
        KeyboardInterrupt
            After a signal to end, with the checkpoint written: benchopt then
            ends the whole command, and not this run alone.
        """
        if not self.is_on:
            return
        received = signals.pending()
        wanted = self.world.maximum(
            2 + signals.ALL.index(received) if received
            else int(self._is_due())
        )
        if not wanted:
            return
        # Whichever rank it came to, all end by it.
        signaled = signals.ALL[wanted - 2] if wanted > 1 else None
        if self.trainer.step == 0:
            # There is nothing to keep.
            self._end(signaled)
        if self.world.rank:
            # Rank 0 has the clock, and writes.
            self.trainer.state_dict()
        else:
            clock = get_clock(self.callback)
            start = time.monotonic()
            self._save(clock)
            seconds = time.monotonic() - start
            self._due = time.monotonic() + max(
                self._seconds, seconds / MAX_SHARE
            )
            set_clock(self.callback, clock)
        if signaled:
            self._end(signaled)

    def _end(self, signaled):
        """End all ranks, once rank 0 has said how the run goes on."""
        if self.world.from_rank_0(
            self.world.rank == 0 and self._goes_on_by_itself(signaled)
        ):
            # A job that is to start again must leave no result behind.
            os._exit(1)
        # Another command of the same process starts afresh.
        signals.clear()
        raise KeyboardInterrupt

    def _goes_on_by_itself(self, signaled):
        """Print what is left of the run. Returns whether Slurm has queued its
        job again."""
        log(f"Ended by {signaled.name} at step {self.trainer.step}.")
        path = next(iter(checkpoints.newest_first(self._folder)), None)
        if path and self._resumes:
            log(f"The same command goes on from there: {path}")
        elif path:
            log("The same command starts this run at step 0, because of "
                f"resume=False. Without that, it goes on from {path}")
        else:
            log("The same command starts this run at step 0.")
        log("Runs that have ended are in benchopt's cache.")
        # Without progress, a job might be queued again for ever.
        return self._resumes and Resumable.has_progress and (
            signals.requeue(signaled)
        )

    def _is_due(self):
        step = self.trainer.step
        if isinstance(self.every, int):
            # All ranks agree anyway.
            return step > 0 and step % self.every == 0
        return step > 0 and not self.world.rank and (
            time.monotonic() >= self._due
        )

    def _save(self, clock):
        """Write a checkpoint. Where that fails, it costs a warning, and not
        the run."""
        state = {
            "trainer": self.trainer.state_dict(), "clock": clock,
            "times_resumed": self.times_resumed,
        }
        with only_warned(f"no checkpoint at step {self.trainer.step}"):
            self._check_space(state)
            checkpoints.save(self._folder, self.trainer.step, state)
            (self._folder / "how.json").write_text(json.dumps(self._how))
            Resumable.has_progress = True

    def _check_space(self, state):
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = checkpoints.size(state)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"it needs {needed / 2**20:.0f} MiB, and "
                          f"{self._folder} has {free / 2**20:.0f}.")

    def discard(self):
        """Remove the checkpoints of a run that is complete."""
        Resumable.has_progress = True
        if not self.is_on or self.world.rank:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        # If there are none otherwise computed.
        with contextlib.suppress(OSError):
            self._run_folder.rmdir()


def identify(solver):
    """The identity of the run that a solver is about to do.

    Returns
    -------
    who, how : dict of str to str, number or list
        Problem, solver, seed and repetition; and what else the results depend
        on: code, versions, data, kind of device. A checkpoint is used only by
        the same run, computed in the same way.
    """
    run, objective = solver._run_context, solver._objective
    dataset = objective._dataset
    who = {
        "data": run.dataset_name, "problem": run.objective_name,
        "solver": run.solver_name, "seed": run.base_seed,
        "repetition": run.repetition,
    }
    how = solver.cache_key() | {
        "files": [one._file_hash for one in (dataset, objective, solver)],
        "shards": repr(dataset._get_state()),
        "initial_weights": objective.cache_key(),
        "device": solver.machine.device.type,
        "dtype": dtype_name(solver.machine.dtype),
    }
    # As JSON gives it back.
    return who, json.loads(json.dumps(how))


def _digest(facts):
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def get_clock(callback):
    """benchopt's rows and clock of a run, stopped now: what it keeps between
    two calls of its callback."""
    now = time.perf_counter()
    return {
        "rows": callback.curve,
        "seconds": callback.time_iter + now - callback.time_callback,
        "calls": callback.it,
        "next_evaluation": callback.next_stopval,
    }


def set_clock(callback, clock):
    """Let benchopt's callback go on from a clock of ``get_clock``, now."""
    callback.curve = clock["rows"]
    callback.time_iter = clock["seconds"]
    callback.it = clock["calls"]
    callback.next_stopval = clock["next_evaluation"]
    callback.stopping_criterion.n_eval = len(clock["rows"])
    callback.time_callback = time.perf_counter()
