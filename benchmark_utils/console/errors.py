"""Errors that are read without scrolling.

An error of the user's, a ``ValueError`` or ``OSError`` that the benchmark
itself raises, is one sentence that says all; its traceback is shown where
somebody debugs (``BENCHOPT_DEBUG=1`` or ``--pdb``). What a run failed with is
among the command's last words, too.
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
    """A sentence for the user. benchopt's command line, which is click's,
    prints it alone; to Python code it is the error that it stands for."""

    def show(self, file=None):
        # benchopt's "Loading ..." may have left its line open.
        print(flush=True)
        super().show(file)


def readable(method):
    """Decorator of a component's method: errors of the user's that leave it
    are a ``UserError``, and have no traceback but the caller's."""
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
    """Decorator of a method that a run calls: ``readable``, and whatever it
    fails with is said again when the command ends."""
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
    """A sentence about an operation that torch does not have on Apple's GPUs;
    None if the error is another one."""
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
    """An error in words: those of the benchmark's own errors say all, any
    other's follow its kind, such as ``KeyError: 'lr'``."""
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
    """Whether tracebacks have frames: benchopt prints the traceback of
    whatever ends a run, and the frames of a ``UserError`` say nothing."""
    if wanted:
        vars(sys).pop("tracebacklimit", None)
    else:
        sys.tracebacklimit = 0


def explain_command():
    """Have one sentence printed where a command ends because benchopt can't
    read the name or the parameters of a component: it finds that out before
    it calls anything of the benchmark."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_error


def _print_error(kind, error, trace):
    sentence = unreadable(error)
    if kind is not ValueError or not sentence or is_debugging(None):
        return sys.__excepthook__(kind, error, trace)
    print(f"Error: {sentence}", file=sys.stderr)


def unreadable(error):
    """A sentence about benchopt's error of a component that it can't read or
    a parameter that there isn't; None if the error is another one."""
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
    """A sentence about parameters that a component doesn't have, quoted."""
    close = [
        name for word in re.findall("'(.*?)'", unknown)
        for name in difflib.get_close_matches(word, names, 1)
    ]
    hint = f"Do you mean {', '.join(close)}?" if close else (
        f"It has {', '.join(names)}."
    )
    return f"{component} has no parameter {unknown}. {hint}"


def is_ours(error):
    """Whether the benchmark's code raised it, not a library that it uses."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = Path(frame.f_code.co_filename).resolve()
    return ROOT in file.parents and "site-packages" not in file.parts
