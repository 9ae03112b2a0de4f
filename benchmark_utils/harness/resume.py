"""Resumption of a killed run from its last checkpoint.

The Trainer provides its state and ``training.checkpoints`` the files. This
module adds benchopt's part: the curve and clock of a run, private attributes
of benchopt's callback (``get_clock``, ``set_clock``).
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

# Seconds between checkpoints with "auto", and the largest share of the time
# that writing them may take.
AUTO_SECONDS = 600
MAX_SHARE = 0.01


class Resumable:
    """Checkpoints of a run, its resumption, and its end by a signal.

    Parameters
    ----------
    solver : TrainingSolver
        Solver with a ``trainer``, before training.
    callback : benchopt's callback
    every : "auto", int or str
        Steps between checkpoints, or minutes as in "5min"; 0 for none. "auto"
        is about ten minutes, and at most 1 % of the time.
    resume : bool
        Whether to continue from the last checkpoint.
    """

    # Whether this process has saved or finished any run.
    has_progress = False

    def __init__(self, solver, callback, every: int | str, resume: bool):
        self.trainer, self.callback = solver.trainer, callback
        self.world = solver.world
        self.every, self._resumes = every, resume
        self.is_on = every != 0
        self.times_resumed = 0
        self._seconds: float = AUTO_SECONDS
        if isinstance(every, str) and every != "auto":
            self._seconds = 60 * float(every.removesuffix("min"))
        if self.is_on:
            run_key, self._environment_key = identify(solver)
            # The data folder may be on a larger disk than benchopt's cache.
            self._run_folder = get_data_path("checkpoints") / _digest(run_key)
            self._folder = self._run_folder / _digest(self._environment_key)
            if resume:
                self._resume()
        self._due = time.monotonic() + self._seconds

    def _resume(self):
        # All ranks read the checkpoint that rank 0 chooses.
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
            # Workers have no clock.
            if hasattr(self.callback, "time_iter"):
                set_clock(self.callback, state["clock"])
            self.times_resumed = state["times_resumed"] + 1
            log(f"Continues from step {self.trainer.step}, after "
                f"{state['clock']['seconds']:.0f} s of training: {path}")
            return
        self._warn_of_others()

    def _warn_of_others(self):
        """Log why checkpoints of this run from other environments are not
        used."""
        for path in self._run_folder.glob("*/how.json"):
            if path.parent == self._folder:
                continue
            try:
                other = json.loads(path.read_text())
                reason = "different " + ", ".join(
                    name for name, value in self._environment_key.items()
                    if other.get(name) != value
                )
            except (OSError, ValueError) as error:
                reason = f"an unreadable description ({error})"
            log(f"WARNING: {path.parent} has a checkpoint of this run, but "
                f"with {reason}: it is kept and not used. The run starts at "
                "step 0.")

    def __enter__(self):
        if self.is_on:
            signals.install(signals.ALL)
        return self

    def __exit__(self, *error):
        signals.restore(signals.ENDING)

    def before_callback(self):
        """Write a checkpoint if one is due, with benchopt's clock stopped.

        Raises
        ------
        KeyboardInterrupt
            After a signal, once the checkpoint is written: it makes benchopt
            end the whole command, not only this run.
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
        # A signal to any rank ends all.
        signaled = signals.ALL[wanted - 2] if wanted > 1 else None
        if self.trainer.step == 0:
            # There is nothing to save.
            self._end(signaled)
        if self.world.rank:
            # Rank 0 writes, with this rank's part of the state.
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
        """End all ranks, once rank 0 has logged how to resume."""
        if self.world.from_rank_0(
            self.world.rank == 0 and self._log_end_and_requeue(signaled)
        ):
            # A requeued job must not write results.
            os._exit(1)
        # The next command of this process must not see this signal.
        signals.clear()
        raise KeyboardInterrupt

    def _log_end_and_requeue(self, signaled):
        """Log how to resume the run; return whether Slurm requeues its job."""
        log(f"Ended by {signaled.name} at step {self.trainer.step}.")
        path = next(iter(checkpoints.newest_first(self._folder)), None)
        if path and self._resumes:
            log(f"The same command resumes from {path}")
        elif path:
            log("The same command starts this run at step 0, because of "
                f"resume=False; without it, it resumes from {path}")
        else:
            log("The same command starts this run at step 0.")
        log("Finished runs are in benchopt's cache.")
        # Without progress, a job could be requeued endlessly.
        return self._resumes and Resumable.has_progress and (
            signals.requeue(signaled)
        )

    def _is_due(self):
        step = self.trainer.step
        if isinstance(self.every, int):
            # All ranks come to the same result.
            return step > 0 and step % self.every == 0
        return step > 0 and not self.world.rank and (
            time.monotonic() >= self._due
        )

    def _save(self, clock):
        """Write a checkpoint; a failure only logs a warning."""
        state = {
            "trainer": self.trainer.state_dict(), "clock": clock,
            "times_resumed": self.times_resumed,
        }
        with only_warned(f"no checkpoint at step {self.trainer.step}"):
            self._check_space(state)
            checkpoints.save(self._folder, self.trainer.step, state)
            (self._folder / "how.json").write_text(
                json.dumps(self._environment_key)
            )
            Resumable.has_progress = True

    def _check_space(self, state):
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = checkpoints.size(state)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"it needs {needed / 2**20:.0f} MiB, but "
                          f"{self._folder} has {free / 2**20:.0f} MiB left.")

    def discard(self):
        """Remove the checkpoints of a complete run."""
        Resumable.has_progress = True
        if not self.is_on or self.world.rank:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        # Fails if there are checkpoints from other environments.
        with contextlib.suppress(OSError):
            self._run_folder.rmdir()


def identify(solver):
    """Identify a solver's run; a checkpoint is used only if both keys match.

    Returns
    -------
    run_key, environment_key : dict of str to str, number or list
        Problem, solver, seed and repetition; and what else the results depend
        on: code, versions, data, kind of device.
    """
    run, objective = solver._run_context, solver._objective
    dataset = objective._dataset
    run_key = {
        "data": run.dataset_name, "problem": run.objective_name,
        "solver": run.solver_name, "seed": run.base_seed,
        "repetition": run.repetition,
    }
    environment_key = solver.cache_key() | {
        "files": [one._file_hash for one in (dataset, objective, solver)],
        "shards": repr(dataset._get_state()),
        "initial_weights": objective.cache_key(),
        "device": solver.machine.device.type,
        "dtype": dtype_name(solver.machine.dtype),
    }
    # JSON turns tuples into lists, as in the file that this is compared with.
    return run_key, json.loads(json.dumps(environment_key))


def _digest(key):
    text = json.dumps(key, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def get_clock(callback) -> dict:
    """Return the curve and clock that benchopt keeps between two calls of its
    callback, stopped now."""
    now = time.perf_counter()
    return {
        "curve": callback.curve,
        "seconds": callback.time_iter + now - callback.time_callback,
        "calls": callback.it,
        "next_evaluation": callback.next_stopval,
    }


def set_clock(callback, clock: dict):
    """Continue benchopt's callback from a clock of ``get_clock``, now."""
    callback.curve = clock["curve"]
    callback.time_iter = clock["seconds"]
    callback.it = clock["calls"]
    callback.next_stopval = clock["next_evaluation"]
    callback.stopping_criterion.n_eval = len(clock["curve"])
    callback.time_callback = time.perf_counter()
