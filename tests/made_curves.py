"""Results of runs that never ran, as benchopt writes them."""
import numpy as np
import pandas as pd

TARGET = 2.0
START = 5.5


def results(solvers, num_seeds=3, num_steps=200, eval_every=10, spread=5.0,
            seed=0, problem="Simulated[margin=0.1]"):
    """A frame as ``benchopt.results.read_results`` returns it.

    Parameters
    ----------
    solvers : dict
        Name -> dict of ``steps``, the mean number of steps to the target
        (beyond ``num_steps``: never); and, if wanted, ``ms`` per step,
        ``diverged`` (numbers of seeds) and ``parameters`` (of the solver).
    spread : float
        The standard deviation of steps to target over seeds.

    A run stops at its target, where the line between its two last
    evaluations crosses it. Every seed has a speed of its own.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for name, about in solvers.items():
        parameters = about.get("parameters", {})
        values = ",".join(f"{key}={val}" for key, val in parameters.items())
        for repetition in range(num_seeds):
            frame = _run(
                about["steps"] + spread * rng.standard_normal(),
                about.get("ms", 10.0) * (1 + 0.2 * rng.random()), num_steps,
                eval_every, repetition in about.get("diverged", ()),
            )
            frames.append(frame.assign(
                solver_name=f"{name}[{values}]", idx_rep=repetition,
                **{f"p_solver_{key}": val for key, val in parameters.items()},
            ))
    frame = pd.concat(frames, ignore_index=True)
    if "p_solver_momentum" not in frame:
        # A parameter that only another solver has, as benchopt puts it.
        frame["p_solver_momentum"] = np.nan
        sgd = frame["solver_name"].str.startswith("SGD")
        frame.loc[sgd, "p_solver_momentum"] = 0.9
    return frame.assign(
        dataset_name=problem, objective_name="nanoGPT[2x32]", base_seed=0,
        p_dataset_margin=float(problem.partition("=")[2].rstrip("]")),
        p_obj_n_layer=2, objective_target=TARGET,
        objective_num_steps=num_steps, objective_num_parameters=35_712,
        objective_device="cpu", objective_dtype="float32",
        objective_num_threads=1, objective_world_size=1,
        objective_torch_version="2.13.0+cpu", objective_batch_size=8,
        run_date="2026-01-01T00:00:00.000000", platform="Linux",
        sampling_strategy="Callback", solver_description="", **{
            "obj_description": "", "system-cpus": 2, "version-numpy": "2.4",
            "system-processor": "AMD EPYC", "platform-release": "6",
            "platform-architecture": "x86_64", "env-OMP_NUM_THREADS": "1",
        },
    )


def _run(crossing, ms, num_steps, eval_every, diverged):
    """One run: the loss falls like 1 / sqrt(step) to the target."""
    steps = np.arange(0, num_steps + 1, eval_every)
    scale = (START / TARGET) ** 2 - 1
    losses = START / np.sqrt(1 + scale * steps / crossing)
    reason, end, to_target = "horizon", len(steps), np.inf
    if diverged:
        reason, end = "diverged", len(steps) // 3
        losses[end - 1] = np.inf
    elif losses.min() < TARGET:
        reason, end = "target", int(np.argmax(losses < TARGET)) + 1
        before, last = losses[end - 2:end]
        share = (before - TARGET) / (before - last)
        to_target = steps[end - 2] + share * eval_every
    steps, losses = steps[:end], losses[:end]
    return pd.DataFrame({
        "stop_val": steps, "time": steps * ms / 1000,
        "objective_value": losses, "objective_step": steps,
        "objective_tokens": steps * 512, "objective_train_loss": losses,
        "objective_learning_rate": 1e-3,
        "objective_target_reached": (losses < TARGET).astype(int),
        "objective_diverged": np.isinf(losses).astype(int),
        "objective_stop_reason": reason,
        "objective_steps_to_target": to_target,
        "objective_tokens_to_target": to_target * 512,
        "objective_seconds_to_target": to_target * ms / 1000,
        "objective_peak_memory_mib": 100.0,
    })


NAMES = (
    "Adafactor Adam AdamH AdEMAMix Lion MARS Muon MuonH NAdam NorMuon "
    "PSGD-Kron Schedule-free-AdamW Scion SGD Shampoo Signum SOAP"
).split()
THREE = {
    "Adam": {"steps": 150}, "Muon": {"steps": 100, "ms": 14},
    "SGD": {"steps": 900},
}
CASES = {
    "three": results(THREE),
    "one solver, one seed": results({"Adam": {"steps": 150}}, num_seeds=1),
    "seventeen, ten seeds": results({
        name: {"steps": 90 + 8 * index, "ms": 8 + index % 5}
        for index, name in enumerate(NAMES)
    }, num_seeds=10, num_steps=400),
    "all censored": results({"Adam": {"steps": 300}, "SGD": {"steps": 900}}),
    "one diverged": results({
        "Adam": {"steps": 150, "diverged": [1]},
        "SGD": {"steps": 400, "diverged": [0, 1, 2]},
    }),
    "a sweep": pd.concat([
        results({"Adam": {
            "steps": steps, "diverged": diverged,
            "parameters": {"learning_rate": rate, "weight_decay": 0.1},
        }}) for rate, steps, diverged in [
            (0.001, 180, []), (0.003, 120, []), (0.01, 160, [0]),
            (0.03, 150, [0, 1, 2]),
        ]
    ], ignore_index=True),
    "two problems": pd.concat([
        results(THREE, problem=f"Simulated[margin={margin}]")
        for margin in [0.1, 0.2]
    ], ignore_index=True),
}
