"""One-line errors for user mistakes.

A ``ValueError`` or ``OSError`` that the benchmark itself raises is printed as
one sentence, with a traceback only for debugging (``BENCHOPT_DEBUG=1`` or
``--pdb``). The summary at the end of a command repeats why a run failed.
"""
import difflib
import functools
import os
import re
import sys
import traceback
from pathlib import Path

import click

from benchmark_utils.console.run_summary import (
    add_problem,
    open_summary,
    set_results_path,
)

ROOT = Path(__file__).resolve().parents[2]


class UserError(click.ClickException, ValueError, OSError):
    """An error that benchopt's command line, which uses click, prints as one
    sentence, and that Python code catches as ``ValueError`` or ``OSError``."""

    def show(self, file=None):
        # benchopt's "Loading ..." may have no end of line yet.
        print(flush=True)
        super().show(file)


def readable(method):
    """Decorate a component's method to raise user mistakes as ``UserError``,
    without the frames below the method."""
    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        open_summary()
        set_results_path(getattr(self, "_run_context", None))
        show_frames(True)
        try:
            return method(self, *args, **kwargs)
        except (ValueError, OSError) as error:
            if is_debugging(self) or not is_ours(error):
                raise
            if getattr(self, "_run_context", None):
                show_frames(False)
            raise UserError(str(error)) from None

    return wrapper


def summarized(method):
    """Decorate a method of a run: ``readable``, and any error is repeated in
    the summary at the end of the command."""
    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            missing = missing_operation(error)
            add_problem(self, f"failed: {missing or describe(error)}")
            if missing:
                raise ValueError(f"{self.name}: {missing}") from error
            raise

    return readable(wrapper)


def missing_operation(error):
    """Explain torch's error about an operation that Apple's GPUs lack; None
    for any other error."""
    found = re.search(
        "operator '([^']+)' is not currently implemented for the MPS device",
        str(error),
    )
    return found and (
        f"torch has no {found[1]} on Apple's GPUs. Set the environment "
        "variable PYTORCH_ENABLE_MPS_FALLBACK=1, and the processor computes "
        "it; or train with device=cpu."
    )


def describe(error):
    """Return an error's message, preceded by its type unless the benchmark
    itself raised it: ``KeyError: 'lr'``."""
    if isinstance(error, (ValueError, OSError)) and is_ours(error):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()


def is_debugging(component):
    context = getattr(component, "_run_context", None)
    return getattr(context, "pdb", False) or (
        os.environ.get("BENCHOPT_DEBUG", "").lower()
        in ("1", "true", "yes", "on")
    )


def show_frames(wanted):
    """Show or hide the frames of tracebacks: benchopt prints the traceback of
    any error that ends a run, and a ``UserError`` needs no frames."""
    if wanted:
        vars(sys).pop("tracebacklimit", None)
    else:
        sys.tracebacklimit = 0


def explain_command():
    """Print one sentence where a command ends because benchopt can't read the
    name or the parameters of a component. Only ``sys.excepthook`` can: no
    code of the benchmark is running then."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_error


def _print_error(kind, error, trace):
    sentence = unreadable(error)
    if kind is not ValueError or not sentence or is_debugging(None):
        return sys.__excepthook__(kind, error, trace)
    print(f"Error: {sentence}", file=sys.stderr)


def unreadable(error):
    """Rewrite benchopt's error about a component that it can't read, or about
    an unknown parameter, as one sentence; None for any other error."""
    text = str(error)
    if found := re.match(r"Unknown parameter (.*) for \w+ (.*)\.\n", text):
        return misspelt(*found.groups(), re.findall("^- (.*)$", text, re.M))
    if found := re.match(r"Invalid name '(.*)', evaluated as ", text, re.S):
        return (
            f"benchopt can't read [{found[1]}]. It takes names with values, "
            "as in [num_steps=100,schedule=cosine]; quote a value that is "
            "neither a number nor a name, as in [checkpoint_every='5min']."
        )
    if found := re.match(r"Invalid name \((.*)\): (.*)", text, re.S):
        return (
            f"benchopt can't read {found[2]} ({found[1]}). It takes a name "
            "with one pair of brackets, as in SGD[num_steps=100]."
        )
    return None


def misspelt(unknown, component, names):
    """Name the parameters, quoted, that a component does not have."""
    close = [
        name for word in re.findall("'(.*?)'", unknown)
        for name in difflib.get_close_matches(word, names, 1)
    ]
    hint = f"Do you mean {', '.join(close)}?" if close else (
        f"It has {', '.join(names)}."
    )
    return f"{component} has no parameter {unknown}. {hint}"


def is_ours(error):
    """Whether the benchmark's own code, not a library, raised the error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = Path(frame.f_code.co_filename).resolve()
    return ROOT in file.parents and "site-packages" not in file.parts
