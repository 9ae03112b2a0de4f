"""Comparability of runs: the conditions under which steps and seconds are
comparable."""
import math

import pandas as pd

# Columns that describe the machine, as benchopt and objective.py record it.
MACHINE = [
    "device", "world_size", "system-processor", "system-cpus",
    "system-ram (GB)", "platform", "platform-architecture",
    "platform-release",
]
# Settings of the machine. They change seconds, and losses by rounding.
SETTINGS = [
    "dtype", "num_threads", "compiled", "micro_batch_size", "torch_version",
    "version-cuda",
]
COMMAND = ["source", "run_date"]
WORDS = {
    "world_size": "ranks", "system-processor": "processor",
    "system-cpus": "CPUs", "system-ram (GB)": "GB of memory",
    "platform": "system", "platform-architecture": "architecture",
    "platform-release": "kernel", "num_threads": "threads",
    "compiled": "compilation", "micro_batch_size": "micro-batch",
    "torch_version": "torch", "version-cuda": "CUDA",
    "num_steps": "horizon",
}


def comparable_seconds(runs: pd.DataFrame) -> list[str]:
    """List the reasons why the seconds of runs (see ``table.runs``) are not
    comparable, as clauses.

    They are within one machine and one command that trained its runs one
    after the other, under the same conditions: the list is empty then.
    """
    reasons = [
        f"{_word(column)} {_values(runs, column)}"
        for column in MACHINE + SETTINGS if _differs(runs, column)
    ]
    if any(_differs(runs, column) for column in COMMAND):
        reasons.append("more than one command")
    if _side_by_side(runs):
        reasons.append("runs trained side by side")
    return reasons


def warnings(runs: pd.DataFrame) -> list[str]:
    """Warn, in sentences, of differences between all runs on a problem."""
    found = []
    if _differs(runs, "num_steps"):
        found.append(
            f"Horizons differ ({_by_solver(runs, 'num_steps')} steps): a "
            "schedule that ends sooner also cools down sooner."
        )
    reasons = comparable_seconds(runs)
    if reasons:
        found.append(
            "Seconds and ms per step are not comparable: "
            f"{'; '.join(reasons)}."
        )
    rounding = [
        _word(column)
        for column in ["device", "dtype", "torch_version", "world_size"]
        if _differs(runs, column)
    ]
    if rounding:
        found.append(
            f"Runs differ in {_listed(rounding)}, which changes losses by "
            "rounding and may explain part of a difference."
        )
    for label, rows in runs.groupby("label", sort=False):
        n = len(rows)
        if rows["diverged"].any():
            found.append(
                f"{rows['diverged'].sum()} of {n} seeds of {label} diverged: "
                "they count as missing the target up to the horizon."
            )
        at_once = rows["steps_to_target"] == 0
        if at_once.any():
            found.append(
                f"{at_once.sum()} of {n} seeds of {label} needed no training: "
                "their loss at step 0 is below the target."
            )
        # A run of no steps changes no weight either.
        unmoved = (rows["trained_to"] > 0) & (
            rows.get("weights_moved", 1) == 0
        )
        if unmoved.any():
            found.append(
                f"{unmoved.sum()} of {n} seeds of {label} trained nothing: no "
                "weight has changed."
            )
        short = rows["stop_reason"].isin(["timeout", "max_runs"])
        if short.any():
            found.append(
                f"{short.sum()} of {n} seeds of {label} were stopped by "
                f"{_listed(sorted(rows['stop_reason'][short].unique()))} at "
                f"step {rows['step'][short].min()} or later, before their "
                "horizon."
            )
    families = runs.groupby("family", sort=False)["label"].nunique()
    for family, count in families[families > 1].items():
        found.append(
            f"{family} has {count} settings: picking the best of them on "
            "these seeds flatters it. Compare it on seeds that had no part in "
            "the choice."
        )
    if "settings_source" in runs:
        published = runs[runs["settings_source"].fillna("") != ""]
        for source, rows in published.groupby("settings_source", sort=False):
            found.append(
                f"Settings of {_listed(list(rows['label'].unique()))}: "
                f"{source.rstrip('.')}."
            )
    return found


def _side_by_side(runs):
    """Whether two runs overlapped, by the clock."""
    if not {"started", "ended"} <= set(runs):
        return False
    spans = runs[["started", "ended"]].dropna().sort_values("started")
    latest = spans["ended"].cummax().shift()
    return bool((spans["started"] < latest).any())


def _differs(runs, column):
    # A missing value counts: one file may have what another lacks.
    return column in runs and runs[column].nunique(dropna=False) > 1


def _values(runs, column):
    return _listed([_text(value) for value in runs[column].unique()])


def _by_solver(runs, column):
    """"Adam 300, Muon 250", by value and then by solver."""
    pairs = runs[[column, "label"]].drop_duplicates()
    if len(pairs) > 6:
        return f"{runs[column].min()} to {runs[column].max()}"
    return ", ".join(
        f"{label} {_text(value)}"
        for value, label in pairs.itertuples(index=False)
    )


def _word(column):
    return WORDS.get(column, column)


def _text(value):
    if value is None or isinstance(value, float) and math.isnan(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(words):
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last
