"""Results made by hand, in the columns that a run of the benchmark has."""
import math

import pandas as pd


def made_run(solver, repetition, steps_to_target, num_steps=300, target=2.5,
             final_loss=None, diverged_at=None, ms_per_step=10.0,
             parameters=None, dataset="Data", base_seed=0, **columns):
    """The rows of one run: its start, the middle, and its end.

    ``steps_to_target`` is None for a run that never gets there. One with
    ``final_loss`` is trained to the horizon, others end at the target.
    """
    reached = steps_to_target is not None
    end = num_steps
    if reached and final_loss is None:
        end = math.ceil(steps_to_target)
    if diverged_at is not None:
        end = diverged_at
    if final_loss is None:
        final_loss = target - 0.001 if reached else target + 0.1
    parameters = {"num_steps": num_steps} | (parameters or {})
    listed = ",".join(f"{key}={parameters[key]}" for key in sorted(parameters))
    time_to_target = steps_to_target if reached else math.inf
    rows = []
    for step in (0, end // 2, end):
        broken = step == end and diverged_at is not None
        rows.append({
            "dataset_name": dataset, "objective_name": "nanoGPT[tiny]",
            "solver_name": f"{solver}[{listed}]", "idx_rep": repetition,
            "base_seed": base_seed, "stop_val": step,
            "run_date": "2026-11-25T12:00:00",
            "time": step * ms_per_step / 1000,
            "objective_value": math.inf if broken else (
                final_loss if step == end else 5.0
            ),
            "objective_step": step, "objective_tokens": 512 * step,
            "objective_num_steps": num_steps, "objective_target": target,
            "objective_diverged": int(broken),
            "objective_peak_memory_mib": 400.0 + step / 100,
            "objective_steps_to_target": time_to_target,
            "objective_tokens_to_target": 512 * time_to_target,
            "objective_seconds_to_target":
                time_to_target * ms_per_step / 1000,
            "objective_stop_reason": (
                "diverged" if diverged_at is not None
                else "target" if end < num_steps else "horizon"
            ),
            "objective_device": "cpu", "objective_dtype": "float32",
            "objective_num_threads": 2, "objective_world_size": 1,
            "objective_torch_version": "2.13.0",
            "system-processor": "A processor",
            **{f"p_solver_{key}": value for key, value in parameters.items()},
            **columns,
        })
    return rows


def made_results(solvers, **options):
    """Results of several solvers, as benchopt returns them.

    ``solvers`` maps a name to the steps to target of its repetitions, None
    for one that never gets there.
    """
    return pd.DataFrame([
        row
        for solver, repetitions in solvers.items()
        for repetition, steps in enumerate(repetitions)
        for row in made_run(solver, repetition, steps, **options)
    ])
