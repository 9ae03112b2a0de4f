"""The report: which solver needs how many steps, and whether that is a
difference.

    python -m benchmark_utils.report
    python -m benchmark_utils.report outputs/mine.parquet --baseline Muon

docs/evidence.rst says how to read it.
"""
import argparse
import csv
import io
import math
import os
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

from benchmark_utils.results import comparison, table
from benchmark_utils.results.verdict import verdict

OUTPUTS = Path(__file__).parents[1] / "outputs"
WIDTH = 90
HEADER = [
    "solver", "reached", "steps to target", "last loss", "ms/step",
    "peak MiB",
]
# A longer label stands on a line of its own.
LABEL_WIDTH = 24


class Section(NamedTuple):
    """What there is to say about one problem."""
    dataset: str
    objective: str
    target: float
    baseline: str
    summaries: object
    comparisons: dict
    sentences: list
    notes: list


def main(arguments=None):
    options = parse(arguments)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            evaluations = table.read(options.files or [newest(OUTPUTS)])
        sections = [
            section(evaluations, dataset, objective, options.baseline)
            for dataset, objective in table.problems(evaluations)
        ]
    except (OSError, ValueError) as error:
        raise SystemExit(_sentence(error)) from None
    for warning in caught:
        for each in sections:
            each.notes.insert(0, str(warning.message))
    text = FORMATS[options.format](sections)
    if options.output is None:
        print(text, end="")
    else:
        write(options.output, text)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmark_utils.report",
        description="Tables and a verdict from files of results.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE",
        help="parquet files of results; the newest in outputs/ without",
    )
    parser.add_argument(
        "--baseline", metavar="SOLVER",
        help="what others are compared with: a solver as the report names "
        "it; AdamW or Adam if there, else the first",
    )
    parser.add_argument("--format", choices=list(FORMATS), default="text")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="file to write the report to, in place of the screen",
    )
    return parser.parse_args(arguments)


def newest(folder):
    """The parquet file that was written last.

    Raises
    ------
    FileNotFoundError
    """
    files = sorted(folder.glob("*.parquet"), key=os.path.getmtime)
    if not files:
        raise FileNotFoundError(
            f"There are no results in {folder}: `benchopt run . --config "
            "configs/quickstart.yml` makes some, or name a file."
        )
    return files[-1]


def section(evaluations, dataset, objective, baseline=None):
    """A ``Section``: one problem, against one baseline.

    Raises
    ------
    ValueError
        If there is no such baseline, or the targets differ.
    """
    runs = table.runs(table.one_problem(evaluations, dataset, objective))
    rows = comparison.summaries(runs)
    baseline = comparison.choose_baseline(rows, baseline)
    sentences, notes = verdict(runs, baseline)
    return Section(
        dataset, objective, float(runs["target"].iloc[0]), baseline, rows,
        {each.label: each for each in comparison.comparisons(runs, baseline)},
        sentences, notes,
    )


def write(path, text):
    """A file under a temporary name, then renamed: it is whole or not
    there."""
    if not path.parent.is_dir():
        raise SystemExit(f"--output {path}: there is no folder {path.parent}.")
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def cells(section):
    """The table of one problem: a row of texts per solver."""
    rows = [HEADER + [f"steps / {section.baseline}'s (95 % CI)"]]
    for row in section.summaries.itertuples():
        rows.append([
            row.label, f"{row.reached} of {row.n}", _steps(row),
            f"{row.diverged} diverged" if math.isinf(row.val_loss)
            else f"{row.val_loss:.4f}",
            _number(row.ms_per_step, ".4g"), f"{row.peak_memory_mib:,.0f}",
            "1" if row.label == section.baseline
            else _ratio(section.comparisons[row.label]),
        ])
    return rows


def _steps(row):
    """Mean and sd; the median and its interval if a seed is censored."""
    if math.isfinite(row.mean):
        spread = "" if row.n == 1 else f" \u00b1 {row.sd:.2g}"
        return f"{row.mean:.5g}{spread}"
    if not row.reached:
        return f"> {row.horizon}"
    if math.isinf(row.median):
        return "median not reached"
    text = f"median {row.median:.5g}"
    if math.isnan(row.low):
        return text
    return f"{text} ({row.low:.5g} to {_number(row.high, '.5g')})"


def _ratio(compared):
    ratio = compared.ratio
    if math.isnan(ratio.value):
        return "-"
    if math.isnan(ratio.low):
        return f"{ratio.value:.3f}"
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _number(value, spec):
    if math.isnan(value):
        return "-"
    return "not reached" if math.isinf(value) else format(value, spec)


def as_text(sections):
    return "\n\n".join(map(_text_section, sections)) + "\n"


def _text_section(section):
    rows = cells(section)
    wide = [len(row[0]) > LABEL_WIDTH for row in rows]
    # A long label leaves the first cell of its row empty, one line below.
    lines = [
        row if not alone else [""] + row[1:]
        for row, alone in zip(rows, wide)
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [section.dataset, section.objective, _target(section), ""]
    for row, line, alone in zip(rows, lines, wide):
        if alone:
            text.append(row[0])
        text.append("  ".join(
            cell.ljust(width) for cell, width in zip(line, widths)
        ).rstrip())
    for title, paragraphs in [
        ("Verdict", section.sentences), ("Notes", section.notes)
    ]:
        if paragraphs:
            text += ["", title] + [
                textwrap.fill(
                    paragraph, WIDTH, initial_indent="- ",
                    subsequent_indent="  ", break_on_hyphens=False,
                )
                for paragraph in paragraphs
            ]
    return "\n".join(text)


def _target(section):
    return f"Target: a validation loss of {section.target:.5g} nats per token"


def as_markdown(sections):
    parts = []
    for section in sections:
        header, *rows = [
            [cell.replace("|", "\\|") for cell in row]
            for row in cells(section)
        ]
        lines = [header, ["---"] * len(header)] + rows
        parts.append("\n".join(
            [f"`{section.dataset}`, `{section.objective}`", "",
             f"{_target(section)}.", ""]
            + [f"| {' | '.join(line)} |" for line in lines]
            + [""] + [f"- {each}" for each in section.sentences]
            + [""] + [f"- {each}" for each in section.notes]
        ).rstrip())
    return "\n\n".join(parts) + "\n"


def as_latex(sections):
    """A tabular per problem, with the verdict in comments below it."""
    parts = []
    for section in sections:
        header, *rows = [
            " & ".join(map(_tex, row)) + r" \\" for row in cells(section)
        ]
        parts.append("\n".join(
            [f"% {section.dataset}", f"% {section.objective}",
             f"% {_target(section)}",
             r"\begin{tabular}{l" + "r" * (len(HEADER)) + "}", r"\hline",
             header, r"\hline"] + rows + [r"\hline", r"\end{tabular}"]
            + [f"% {each}" for each in section.sentences + section.notes]
        ))
    return "\n\n".join(parts) + "\n"


def _tex(cell):
    for character in "&%$#_{}":
        cell = cell.replace(character, f"\\{character}")
    return cell.replace("\u00b1", r"$\pm$").replace(">", "$>$")


def as_csv(sections):
    """All numbers unrounded, a row per solver; empty where there is none."""
    rows = []
    for section in sections:
        for row in section.summaries.to_dict("records"):
            compared = section.comparisons.get(row["label"])
            rows.append({
                "dataset": section.dataset, "objective": section.objective,
                "target": section.target, **row,
                "baseline": section.baseline,
                **(_numbers(compared) if compared else {}),
            })
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            name: "" if isinstance(value, float) and math.isnan(value)
            else value for name, value in row.items()
        })
    return text.getvalue()


def _numbers(compared):
    numbers = {
        "pairs": compared.pairs, "test": compared.test, "p": compared.p,
        "adjusted_p": compared.adjusted_p,
        "seeds_needed": compared.seeds_needed, "until": compared.until,
    }
    for name in ("ratio", "saved", "seconds", "loss"):
        estimate = getattr(compared, name)
        prefix = "seconds_ratio" if name == "seconds" else name
        numbers |= {
            prefix: estimate.value, f"{prefix}_low": estimate.low,
            f"{prefix}_high": estimate.high,
        }
    return numbers | {
        "loss_step": compared.loss_step, "loss_p": compared.loss.p,
        "loss_adjusted_p": compared.loss_adjusted_p,
    }


def _sentence(error):
    """An error as one line."""
    return " ".join(str(error).split())


FORMATS = {
    "text": as_text, "markdown": as_markdown, "latex": as_latex,
    "csv": as_csv,
}

if __name__ == "__main__":
    main()
