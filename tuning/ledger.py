"""Ledgers of tuning: a row for every trial, and the best trials."""
import csv
import statistics

TUNED = ["learning_rate", "weight_decay"]
COLUMNS = [
    "solver", "trial", "seed", *TUNED, "val_loss", "seconds", "torch",
    # Vector instructions of the processor, such as AVX2: sums are rounded
    # differently with others.
    "instructions",
]


def read_ledger(path):
    """Return the rows of a ledger, dicts of str by column."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path, row):
    """Append a row to the ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def losses_by_trial(rows, solver):
    """Return a solver's losses, in the order of the ledger: dict of trial to
    list of float."""
    losses = {}
    for row in rows:
        if row["solver"] == solver:
            losses.setdefault(int(row["trial"]), []).append(
                float(row["val_loss"])
            )
    return losses


def finalists(rows, solver, count):
    """Return a solver's trials with the lowest losses of the first seed."""
    losses = losses_by_trial(rows, solver)
    return sorted(losses, key=lambda trial: losses[trial][0])[:count]


def best(rows, solver):
    """Return the setting with the lowest mean loss, among a solver's trials
    with the most seeds."""
    losses = losses_by_trial(rows, solver)
    seeds = max(map(len, losses.values()))
    chosen = min(
        (trial for trial in losses if len(losses[trial]) == seeds),
        key=lambda trial: statistics.fmean(losses[trial]),
    )
    row = next(
        row for row in rows
        if (row["solver"], row["trial"]) == (solver, str(chosen))
    )
    return {
        name: float(row[name]) for name in TUNED if row[name]
    }
