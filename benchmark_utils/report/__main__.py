"""The report: steps to target of each solver, and a verdict on them.

    python -m benchmark_utils.report
    python -m benchmark_utils.report outputs/mine.parquet --baseline Muon
    python -m benchmark_utils.report --figures figures --html

docs/evidence.rst explains how to read it.
"""
import argparse
import os
import sys
import warnings
from pathlib import Path

from benchmark_utils.analysis import table
from benchmark_utils.analysis.formats import FORMATS
from benchmark_utils.analysis.labels import problem_names
from benchmark_utils.analysis.verdict import verdict
from benchmark_utils.report.figures import save_figures
from benchmark_utils.report.page import (
    carry_scripts,
    check_page,
    page_of,
    write,
)

OUTPUTS = Path(__file__).parents[2] / "outputs"


def main(arguments=None):
    options = parse(arguments)
    try:
        files = options.files or [newest(OUTPUTS)]
        print(f"Results: {', '.join(map(str, files))}", file=sys.stderr)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", table.RepeatedRuns)
            evaluations = table.read(files)
        pages = [page_of(path, OUTPUTS) for path in files * options.html]
        check_outputs(options, pages)
        verdicts = [
            verdict(
                table.runs(table.one_problem(evaluations, *problem)),
                options.baseline,
            )
            for problem in problem_names(evaluations).values()
        ]
        for warning in caught:
            print(warning.message, file=sys.stderr)
        text = FORMATS[options.format](verdicts)
        if options.output is None:
            sys.stdout.reconfigure(errors="replace")
            print(text, end="")
        else:
            write(options.output, text)
        if options.figures is not None:
            paths = save_figures(
                evaluations, options.figures, options.baseline
            )
            print(
                f"{len(paths) // 2} figures as PDF and PNG in "
                f"{options.figures}"
            )
        for page in pages:
            carry_scripts(page)
            print(f"{page} needs no network now")
    except (OSError, table.ResultsError) as error:
        raise SystemExit(" ".join(str(error).split())) from None


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmark_utils.report",
        description="A table and a verdict from files of results.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE",
        help="parquet files of results; by default the newest in outputs/",
    )
    parser.add_argument(
        "--baseline", metavar="SOLVER",
        help="solver that the others are compared with, named as in the "
        "report; by default AdamW or Adam if present, else the first by name",
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="text",
        help="csv has all numbers unrounded",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="new file for the report, instead of the screen",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER",
        help="folder for the figures, as PDF and PNG; files of the same names "
        "are replaced",
    )
    parser.add_argument(
        "--html", action="store_true",
        help="put plotly into the page that benchopt wrote for each FILE, so "
        "that it needs no network",
    )
    return parser.parse_args(arguments)


def newest(folder):
    """Find the parquet file that was written last.

    Raises
    ------
    FileNotFoundError
    """
    files = sorted(folder.glob("*.parquet"), key=os.path.getmtime)
    if not files:
        raise FileNotFoundError(
            f"There are no results in {folder}: create some with `benchopt "
            "run . --config configs/quickstart.yml`, or name a file."
        )
    return files[-1]


def check_outputs(options, pages):
    """Raise OSError or ResultsError if a file can't be written or changed."""
    output, folder = options.output, options.figures
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(
            f"--output {output}: there is no folder {output.parent}."
        )
    if output is not None and output.exists():
        raise FileExistsError(
            f"--output {output} already exists: remove it, or choose another "
            "name."
        )
    if folder is not None and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--figures {folder} is not a folder.")
    for page in pages:
        check_page(page)


if __name__ == "__main__":
    main()
