"""Formats of the report: text for the terminal, markdown, LaTeX and CSV.

Each function takes a list of ``Verdict``, one per problem, and returns text.
"""
import math
import textwrap

import pandas as pd

from benchmark_utils.analysis.text import mean_and_sd

WIDTH = 88
HEADER = [
    "solver", "reached", "steps to target", "last loss", "ms/step",
    "peak MiB", "ratio (95 % CI)",
]
# A longer label gets a line of its own.
LABEL_WIDTH = 20


def as_text(verdicts):
    return "\n\n".join(map(_text, verdicts)) + "\n"


def as_markdown(verdicts):
    parts = []
    for verdict in verdicts:
        header, *rows = [
            [cell.replace("|", "\\|") for cell in row]
            for row in cells(verdict)
        ]
        lines = [header, ["---"] * len(header)] + rows
        parts.append("\n".join(
            [f"`{verdict.dataset}`, `{verdict.objective}`", "",
             f"{_caption(verdict)}.", ""]
            + [f"| {' | '.join(line)} |" for line in lines]
            + [""] + [f"- {each}" for each in verdict.sentences]
            + [""] + [f"- {each}" for each in verdict.notes]
        ).rstrip())
    return "\n\n".join(parts) + "\n"


def as_latex(verdicts):
    """Write a tabular per problem, with the verdict in comments below it."""
    parts = []
    for verdict in verdicts:
        header, *rows = [
            " & ".join(map(_tex, row)) + r" \\" for row in cells(verdict)
        ]
        columns = "l" + "r" * (len(HEADER) - 1)
        parts.append("\n".join(
            [f"% {verdict.dataset}", f"% {verdict.objective}",
             f"% {_caption(verdict)}",
             rf"\begin{{tabular}}{{{columns}}}", r"\hline", header, r"\hline"]
            + rows + [r"\hline", r"\end{tabular}"]
            + [f"% {each}" for each in verdict.sentences + verdict.notes]
        ))
    return "\n\n".join(parts) + "\n"


def as_csv(verdicts):
    """Write all numbers unrounded, a row per solver; empty if missing."""
    rows = []
    for verdict in verdicts:
        for row in verdict.summaries.to_dict("records"):
            compared = verdict.comparisons.get(row["label"])
            rows.append({
                "dataset": verdict.dataset, "objective": verdict.objective,
                "target": verdict.target, **row,
                "baseline": verdict.baseline,
                **(_numbers(compared) if compared else {}),
            })
    # As objects, so that counts stay whole where one is missing.
    return pd.DataFrame(rows, dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


FORMATS = {
    "text": as_text, "markdown": as_markdown, "latex": as_latex,
    "csv": as_csv,
}


def _text(verdict):
    rows = cells(verdict)
    alone = [len(row[0]) > LABEL_WIDTH for row in rows]
    # The rest of a row with a long label follows on the next line.
    lines = [
        ["", *row[1:]] if long else row for row, long in zip(
            rows, alone, strict=True
        )
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [verdict.dataset, verdict.objective, "",
            _wrapped(f"{_caption(verdict)}:"), ""]
    for row, line, long in zip(rows, lines, alone, strict=True):
        if long:
            text.append(row[0])
        text.append("  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip())
    for title, paragraphs in [
        ("Verdict", verdict.sentences), ("Notes", verdict.notes)
    ]:
        if paragraphs:
            text += ["", title]
            text += [_wrapped(each, "- ", "  ") for each in paragraphs]
    return "\n".join(text)


def _wrapped(paragraph, first="", others=""):
    """Wrap lines at WIDTH, but never between a number and its unit."""
    bound = paragraph.replace(" %", "\0%").replace(" = ", "\0=\0")
    return textwrap.fill(
        bound, WIDTH, initial_indent=first, subsequent_indent=others,
        break_on_hyphens=False, break_long_words=False,
    ).replace("\0", " ")


def _caption(verdict):
    return (
        f"Steps to a validation loss of {verdict.target:.4g} nats per token, "
        f"and their ratio to those of {verdict.baseline}"
    )


def cells(verdict):
    """Format the table of one problem: the header, and a row per solver."""
    return [HEADER] + [
        [
            row.label, f"{row.reached} of {row.n}", _steps(row),
            f"{row.diverged} diverged" if math.isinf(row.val_loss)
            else f"{row.val_loss:.4f}",
            _number(row.ms_per_step, ".4g"), f"{row.peak_memory_mib:,.0f}",
            _ratio(verdict.comparisons[row.label].ratio)
            if row.label != verdict.baseline
            # There is no ratio if a seed of the baseline missed the target.
            else "1" if math.isfinite(row.mean) else "-",
        ] for row in verdict.summaries.itertuples()
    ]


def _steps(row):
    """Format the mean and sd, or the median if a seed is censored."""
    if math.isfinite(row.mean):
        return mean_and_sd(row.mean, row.sd)
    if not row.reached:
        return f"> {row.horizon}"
    if math.isinf(row.median):
        return "median not reached"
    text = f"median {row.median:.5g}"
    if math.isnan(row.low):
        return text
    return f"{text} ({row.low:.5g} to {_number(row.high, '.5g')})"


def _ratio(ratio):
    if math.isnan(ratio.value):
        return "-"
    if math.isnan(ratio.low):
        return f"{ratio.value:.3f}"
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _number(value, spec):
    if math.isnan(value):
        return "-"
    return "open" if math.isinf(value) else format(value, spec)


def _tex(cell):
    for character in "&%$#_{}":
        cell = cell.replace(character, f"\\{character}")
    return cell.replace("\u00b1", r"$\pm$").replace(">", "$>$")


def _numbers(compared):
    numbers = {name: getattr(compared, name) for name in [
        "pairs", "test", "p", "adjusted_p", "seeds_needed", "until"
    ]}
    for name, estimate in [
        ("ratio", compared.ratio), ("saved", compared.saved),
        ("seconds_ratio", compared.seconds), ("loss", compared.loss),
    ]:
        numbers |= {
            name: estimate.value, f"{name}_low": estimate.low,
            f"{name}_high": estimate.high,
        }
    return numbers | {
        "loss_step": compared.loss_step, "loss_p": compared.loss.p,
        "loss_adjusted_p": compared.loss_adjusted_p,
    }
