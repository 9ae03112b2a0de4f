"""docs/models.rst says what is so, and its code runs."""
import contextlib
import io
import re

from benchmark_utils.models.named import make_model
from docs import ROOT, code_blocks

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
    for name, number in zip(["gpt2", "rotary", "modern"], row):
        model = make_model(name, 50257)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == number
