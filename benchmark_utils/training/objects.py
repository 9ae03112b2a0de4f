"""Objects in an optimizer's state that a file of numbers can't hold.

Authors keep projectors, schedules, enumerations and quantized tensors in the
groups and the state of their optimizers. ``pack_objects`` describes them in
dicts of tensors and numbers, and ``unpack_objects`` makes them again. Nothing
is pickled: a checkpoint names a class, which must be loaded already, and its
attributes.
"""
import collections
import pickle
import sys

import numpy as np
import torch

# What a checkpoint holds as it is.
PLAIN = (
    type(None), bool, int, float, str, torch.dtype, np.generic, np.ndarray,
)
CONTAINERS = (list, tuple, set, frozenset, collections.deque)
UNCHANGED, OBJECT, SUBCLASS = "<unchanged>", "<object>", "<tensor subclass>"


def opaque_values(state, path=()):
    """Yield (path, value) of each value that needs a description."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from opaque_values(value, (*path, key))
    elif isinstance(state, CONTAINERS):
        for index, value in enumerate(state):
            yield from opaque_values(value, (*path, index))
    elif not is_plain(state):
        yield path, state


def is_plain(value):
    return isinstance(value, PLAIN) or type(value) in (
        torch.Tensor, torch.nn.Parameter
    )


def fingerprints(state):
    """Return what ``pack_objects`` compares with: each opaque value of a newly
    built optimizer's state by its path, and what it is made of."""
    return {path: (value, _made_of(value))
            for path, value in opaque_values(state)}


def _made_of(value):
    """Return a text that tells whether an object has changed; None for a
    function or the like, which does not."""
    try:
        return pickle.dumps(value)
    except Exception:
        return None


def pack_objects(state, initial, path=()):
    """Describe the objects in a state.

    Parameters
    ----------
    state : nested dict, list, tuple, set and deque
    initial : dict
        ``fingerprints`` of the state of the newly built optimizer: what is
        unchanged since is not saved.

    Returns
    -------
    state : the same nesting, of tensors, numbers and texts
        A value that can't be described is left as it is.
    """
    if isinstance(state, dict):
        return {
            key: pack_objects(value, initial, (*path, key))
            for key, value in state.items()
        }
    if type(state) in (list, tuple):
        return type(state)(
            pack_objects(value, initial, (*path, index))
            for index, value in enumerate(state)
        )
    if is_plain(state) or isinstance(state, CONTAINERS):
        return state
    if path in initial and initial[path][1] == _made_of(state) and (
        initial[path][1] is not None or initial[path][0] is state
    ):
        return {UNCHANGED: True}
    kind = type(state)
    name = [kind.__module__, kind.__qualname__]
    if isinstance(state, torch.Tensor) and hasattr(
        state, "__tensor_flatten__"
    ):
        inner, context = state.__tensor_flatten__()
        return {
            SUBCLASS: name, "context": context,
            "inner": {each: getattr(state, each) for each in inner},
            "size": tuple(state.size()), "stride": tuple(state.stride()),
        }
    if isinstance(state, torch.Tensor | type) or not hasattr(
        state, "__dict__"
    ):
        return state
    return {
        OBJECT: name,
        "attributes": pack_objects(vars(state), {}, path),
    }


def unpack_objects(state, fresh):
    """Make the objects of a state of ``pack_objects`` again.

    Parameters
    ----------
    state : nested dict, list and tuple
    fresh : nested dict, list and tuple
        The state of a newly built optimizer: it has what was unchanged.

    Raises
    ------
    ValueError
        If the class of an object is not loaded.
    """
    if isinstance(state, dict):
        if UNCHANGED in state:
            return fresh
        if OBJECT in state:
            made = object.__new__(_find_class(*state[OBJECT]))
            vars(made).update(unpack_objects(state["attributes"], {}))
            return made
        if SUBCLASS in state:
            return _find_class(*state[SUBCLASS]).__tensor_unflatten__(
                state["inner"], state["context"], state["size"],
                state["stride"],
            )
        return {
            key: unpack_objects(
                value, fresh.get(key) if isinstance(fresh, dict) else None
            ) for key, value in state.items()
        }
    if type(state) in (list, tuple):
        fresh = fresh if isinstance(fresh, list | tuple) else ()
        return type(state)(
            unpack_objects(value, fresh[i] if i < len(fresh) else None)
            for i, value in enumerate(state)
        )
    return state


def _find_class(module, name):
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise ValueError(f"the class {module}.{name} is not loaded.")
    return found
