"""docs/models.rst says what is so, and its code runs."""
import contextlib
import io
import re

import pytest
import yaml
from benchopt.results import read_results

from benchmark_utils.harness.select import split
from benchmark_utils.models.named import MODELS, make_model
from docs import ROOT, Clone, code_blocks, shortened

PAGE = "docs/models.rst"


def test_the_code_prints_what_the_page_says():
    code, = code_blocks(PAGE, "python")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    text = (ROOT / PAGE).read_text()
    assert f"prints ``{output.getvalue().strip()}``" in text


def test_numbers_of_parameters_are_those_of_the_table():
    row, = re.findall(
        r"^parameters +(\S+) +(\S+) +(\S+)$", (ROOT / PAGE).read_text(), re.M
    )
    for name, number in zip(["gpt2", "rotary", "modern"], row, strict=True):
        model = make_model(name, 50257)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == number


def test_named_problems_are_those_of_the_table():
    rows = re.findall(
        r"^``(\w+-(?:small|tiny))`` +(\S+) +(\d+) x (\d+) +(\d+) +([\d.]+) ",
        (ROOT / PAGE).read_text(), re.M,
    )
    assert {name for name, *_ in rows} == {
        path.stem for path in (ROOT / "configs" / "problems").glob("*.yml")
    }
    for name, parameters, batch_size, length, num_steps, target in rows:
        config = yaml.safe_load(
            (ROOT / "configs" / "problems" / f"{name}.yml").read_text()
        )
        model = make_model(name, 256)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
        assert int(length) == MODELS[name].context_length
        objective, = config["objective"]
        assert f"[model={name},batch_size={batch_size}," in objective
        assert f",target={target}," in objective
        assert all(
            f"[num_steps={num_steps}," in solver for solver in config["solver"]
        )


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    clone = Clone(tmp_path / "clone")
    problem, select_and_run, _ = code_blocks(PAGE, "bash")
    config = clone.folder / problem.split()[-1]
    config.write_text(shortened(config.read_text()))
    select, run = select_and_run.splitlines()
    clone.run(select)
    for command, number in (problem, 3), (run, 2):
        clone.run(command + " --output last --no-display")
        path, = (clone.folder / "outputs").glob("*.parquet")
        rows = read_results(path)
        path.unlink()
        assert len(rows.solver_name.unique()) == number
        assert (rows.groupby("solver_name").stop_val.last() == 2).all()


def test_rates_of_the_tiny_problems_are_the_best_of_the_ledgers(tmp_path):
    """The command of the page has nothing left to train."""
    *_, tune = code_blocks(PAGE, "bash")
    lines = Clone(tmp_path / "clone").run(tune).splitlines()
    printed, name = {}, ""
    for line in lines:
        if line.startswith("- "):
            printed[name].append(split(line[2:]))
        else:
            name = line.removesuffix(":")
            printed[name] = []
    assert len(printed) == 3
    for name, solvers in printed.items():
        config = yaml.safe_load(
            (ROOT / "configs" / "problems" / f"{name}.yml").read_text()
        )
        assert [split(solver) for solver in config["solver"]] == solvers
