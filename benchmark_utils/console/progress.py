"""Progress of a run, on the screen and in a CSV file.

A terminal shows a bar, a log has a line per evaluation. The optional file has
a row per evaluation and grows while the run trains: other tools can follow it.
"""
import contextlib
import csv
import functools
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmark_utils.analysis.columns import logged


class Progress:
    """Context manager that shows the progress of one run of a
    ``TrainingSolver``."""

    def __init__(self, solver, csv_path: Path | None = None) -> None:
        self.name, self.num_steps = solver.name, solver.num_steps
        self.repetition = getattr(solver._run_context, "repetition", 0)
        self.evaluations = solver.evaluations
        self._csv_path, self._file = csv_path, None
        self._bar = tqdm(
            total=self.num_steps, initial=solver.trainer.step,
            desc=f"{self.name}, repetition {self.repetition + 1}",
            unit="step", leave=False, disable=None, mininterval=1.0,
        )
        # The bar and the log's lines have only the solver's short name.
        log_once(str(solver))
        if csv_path:
            log(f"A row per evaluation: {csv_path}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()
        if self._file:
            self._file.close()

    def step(self) -> None:
        """Count one step."""
        self._bar.update()

    def evaluated(self, curve: list[dict[str, Any]]) -> None:
        """Show the last of the evaluations so far (``columns.measured``)."""
        last = curve[-1]
        if self._csv_path:
            self._write(curve, self._csv_path)
        losses = (
            f"val_loss {last['val_loss']:.4f}, target {last['target']:.4g} "
            f"({last['val_loss'] - last['target']:+.4f})"
        )
        if not self._bar.disable:
            self._bar.set_postfix_str(
                f"{losses}, train_loss {last['train_loss']:.4f}"
            )
            return
        log(
            f"{self.name}, repetition {self.repetition + 1}: step "
            f"{last['step']} of {self.num_steps}, {losses}, "
            f"{last['tokens_per_second']:,.0f} tokens/s{self._left(last)}"
        )

    def _left(self, last):
        """Format the time to the horizon, including evaluations."""
        if last["step"] == 0:
            return ""
        seconds = (self.num_steps - last["step"]) * (
            last["seconds"] / last["step"]
        ) + last["eval_seconds"] * sum(
            step > last["step"] for step in self.evaluations
        )
        return f", at most {in_words(seconds)} left"

    def _write(self, curve, path):
        """Append the last evaluation; the first time, all so far."""
        new = curve[-1:]
        if self._file is None:
            self._file = path.open("w", newline="")
            self._csv = csv.DictWriter(
                self._file, list(logged(curve[-1])), extrasaction="ignore",
                lineterminator="\n",
            )
            self._csv.writeheader()
            new = curve
        self._csv.writerows(map(logged, new))
        self._file.flush()


def in_words(seconds):
    """Format a duration with one unit: "40 s", "5 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def log(message):
    """Print a line about a run, above the bar if there is one."""
    # Ctrl-C also ends the program that reads this output through a pipe. The
    # run must survive that, because it has a checkpoint to write.
    with contextlib.suppress(BrokenPipeError):
        tqdm.write(message)
        sys.stdout.flush()


@contextlib.contextmanager
def only_warned(what):
    """Turn OSError and TypeError in this context into a warning."""
    try:
        yield
    except (OSError, TypeError) as error:
        log(f"WARNING: {what}: {str(error).rstrip('.')}. Nothing else is "
            "affected.")


@functools.cache
def log_once(message):
    """Print a line about a run, once per process."""
    log(message)
