"""What a training run needs of an optimizer that anybody may have written.

An optimizer is whatever has ``param_groups``, ``state_dict``,
``load_state_dict``, ``zero_grad`` and a ``step`` without arguments.
"""
import collections
import copy
import inspect

import torch

METHODS = ["step", "zero_grad", "state_dict", "load_state_dict"]
# Types of attributes that change from step to step in some optimizers, such
# as a counter of their own, and that no ``state_dict`` holds.
COUNTERS = (bool, int, float, collections.deque, torch.Generator)


def parts_of(optimizer):
    """Return the optimizers that an optimizer is made of: those of its method
    ``parts``, or itself."""
    return optimizer.parts() if hasattr(optimizer, "parts") else [optimizer]


def check_optimizer(optimizer):
    """Raise ``ValueError`` unless it is an optimizer that can take a step with
    the gradients that are there."""
    name = type(optimizer).__name__
    missing = [
        method for method in METHODS
        if not callable(getattr(optimizer, method, None))
    ]
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        missing.insert(0, "param_groups")
    if missing:
        raise ValueError(
            f"{name} is not an optimizer, which get_optimizer must return: it "
            f"has no {', '.join(missing)}."
        )
    required = [
        name for name, parameter in inspect.signature(
            optimizer.step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ValueError(
            f"{name}.step asks for {', '.join(required)}."
            " It is called without arguments, after the one forward-backward "
            "pass that every method gets per step: the gradients are in the "
            "parameters."
        )
    without = [g for g in optimizer.param_groups if "lr" not in g]
    if without:
        raise ValueError(
            f"{name} has a group without 'lr': a schedule needs a "
            "learning rate to act on."
        )
    check_rates_reach(optimizer)


def check_rates_reach(optimizer):
    """Raise ``ValueError`` if a learning rate that is set in ``param_groups``
    is not the one that the optimizer saves, and so not the one it uses.

    A wrapper's ``param_groups`` are copies, or are those of before it loaded
    a state: torch's ``load_state_dict`` replaces them.
    """
    groups = optimizer.param_groups
    rates = [copy_rate(group["lr"]) for group in groups]
    marks = [-1.0 - number for number in range(len(groups))]
    for group, mark in zip(groups, marks, strict=True):
        set_rate(group, mark)
    apart = [
        part for part in parts_of(optimizer)
        for group in part.state_dict().get("param_groups", ())
        if float(group["lr"]) not in marks
    ]
    for group, rate in zip(groups, rates, strict=True):
        set_rate(group, rate)
    if apart:
        raise ValueError(
            f"{type(optimizer).__name__}.param_groups are not the groups that "
            f"{type(apart[0]).__name__} trains with, so that a schedule would "
            "have no effect. A wrapper must share them with its base, and "
            "share them again at the end of load_state_dict, with "
            "self.param_groups = self.base.param_groups."
        )


def copy_rate(rate):
    """Return a learning rate that nobody else changes."""
    return rate.clone() if isinstance(rate, torch.Tensor) else rate


def set_rate(group, rate):
    """Set the learning rate of a group, in place where it is a tensor, as
    ``torch.optim.lr_scheduler`` does: others may hold that very tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def load_state(optimizer, state):
    """Load a ``state_dict`` with the dtypes that it has.

    torch's ``load_state_dict`` gives every tensor the dtype of its parameter,
    an integer as well as a bfloat16 momentum, and makes a generator of a
    string.

    Raises
    ------
    ValueError
        If the learning rates no longer reach the optimizer.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, torch.Tensor):
            group["lr"] = rate.fill_(float(group["lr"]))
    if {"state", "param_groups"} <= state.keys():
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        numbers = [n for g in state["param_groups"] for n in g["params"]]
        for p, number in zip(parameters, numbers, strict=True):
            if p in optimizer.state and number in state["state"]:
                optimizer.state[p] = _as_saved(
                    optimizer.state[p], state["state"][number]
                )
    check_rates_reach(optimizer)


def _as_saved(loaded, saved):
    """Replace what torch loaded of a state by what was saved, on the device
    that torch chose."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        if type(loaded) is type(saved) and loaded.dtype == saved.dtype:
            return loaded
        return saved.to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return {
            key: _as_saved(loaded.get(key), value)
            for key, value in saved.items()
        }
    if isinstance(loaded, list | tuple) and len(loaded) == len(saved):
        return type(saved)(map(_as_saved, loaded, saved))
    return copy.deepcopy(saved)


def get_counters(optimizer):
    """Return what an optimizer counts outside of its state: a dict for each of
    its parts, for ``set_counters``."""
    return [
        {
            name: value.get_state() if isinstance(value, torch.Generator)
            else value for name, value in vars(part).items()
            if isinstance(value, COUNTERS)
        } for part in parts_of(optimizer)
    ]


def set_counters(optimizer, counters):
    for part, values in zip(parts_of(optimizer), counters, strict=True):
        for name, value in values.items():
            if isinstance(vars(part)[name], torch.Generator):
                vars(part)[name].set_state(value)
            else:
                setattr(part, name, value)
