"""AdamW's former name, for command lines and configurations that have it."""
from benchopt.benchmark import get_running_benchmark

from benchmark_utils.solver import MatrixSolver


def adamw():
    """The solver's class."""
    found, = get_running_benchmark().check_solver_patterns(
        ["AdamW"], class_only=True
    )
    return found


class Solver(MatrixSolver):
    """The solver AdamW, under which name it runs and is reported.

    Where all solvers run, AdamW runs anyway, and this one is skipped.
    """

    name = "Adam"

    parameters = {
        # benchopt replaces "all" in a solver that is selected by its name, by
        # what `get_all_parameter_values` returns, and leaves it where all
        # solvers run.
        "selected": ["all"],
        # Those of solvers/adamw.py.
        "learning_rate": [6e-4],
        "beta1": [0.9],
        "beta2": [0.95],
        "eps": [1e-8],
        "weight_decay": [0.1],
        "aux_beta1": [None],
        "aux_beta2": [None],
        "aux_weight_decay": [None],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    @classmethod
    def get_all_parameter_values(cls, name):
        return [True] if name == "selected" else None

    @classmethod
    def get_instance(cls, selected=True, **parameters):
        if selected == "all":
            return super().get_instance(selected=selected, **parameters)
        return adamw().get_instance(**parameters)

    @classmethod
    def spread(cls, chosen):
        return adamw().spread(chosen)

    @classmethod
    def check_parameters(cls, values):
        return values | adamw().check_parameters(
            {name: v for name, v in values.items() if name != "selected"}
        )

    def skip(self, **objective):
        return True, "the former name of AdamW, which runs"
