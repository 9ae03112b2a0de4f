"""Any optimizer of the pytorch-optimizer package, by its name.

    -s "pytorch-optimizer[optimizer=adan,options={betas:(0.95,0.9,0.99)}]"

Some of them differ from their papers: see docs/methods.rst.
"""
from benchmark_utils.harness.rules import Rule, number
from benchmark_utils.harness.validation import convert_options
from benchmark_utils.optimizers import by_name
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """The same optimizer for all parameters."""

    name = "pytorch-optimizer"
    requirements = ["pip::pytorch-optimizer~=4.1.0", "pip::opt-einsum"]

    parameters = {
        "optimizer": ["adan"],
        "learning_rate": [1e-3],
        "weight_decay": [0.0],
        # Further arguments of the optimizer by name, such as {eps:1e-6}.
        "options": [None],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    # Of options. Scion's is the share of the new gradient, which can be all.
    rules = {"momentum": Rule(number, low=0, high=1)}

    @classmethod
    def check_together(cls, values):
        optimizer = by_name.find_optimizer(values["optimizer"])
        options = values["options"]
        by_name.check_options(optimizer, values["weight_decay"], options or {})
        if options:
            values["options"] = convert_options(
                options, by_name.known_options(optimizer), cls.rules
            )
        by_name.check_values(
            values["optimizer"], values["learning_rate"],
            values["weight_decay"], values["options"],
        )

    def get_optimizer(self, roles):
        return by_name.make_optimizer(
            self.optimizer, roles, self.learning_rate, self.weight_decay,
            self.options,
        )
