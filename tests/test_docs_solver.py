"""Following docs/add_a_solver.rst to the letter gives a proven solver."""
import shutil

import pytest
from docs import Clone, code_blocks

PAGE = "docs/add_a_solver.rst"


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_from_the_paper_to_a_proven_curve(clone):
    any_optimizer, suite, curve = code_blocks(PAGE, "bash")
    clone.run(any_optimizer)
    shutil.rmtree(clone.folder / "outputs")
    (clone.folder / "solvers" / "cautious_lion.py").write_text(
        "\n\n\n".join(code_blocks(PAGE, "python")) + "\n"
    )
    output = clone.run(suite)
    assert "kept  first steps equal the paper" in output
    assert "kept  every hyper parameter matters" in output
    assert "BROKEN" not in output
    clone.run(curve)
    assert list((clone.folder / "outputs").glob("*.html"))
    last = clone.results().groupby("solver_name").last()
    assert len(last) == 2
    assert (last.objective_step == 60).all()
    assert (last.objective_value < 5).all()


def test_the_suite_notices_mistakes(clone, tmp_path):
    """The file of the page with one sign wrong, and one option unused."""
    source = "\n\n\n".join(code_blocks(PAGE, "python")) + "\n"
    for right, wrong in [
        ("step * p.grad > 0", "step * p.grad < 0"),
        ('group["weight_decay"])\n', '0.0)\n'),
    ]:
        assert right in source
        source = source.replace(right, wrong)
    mine = tmp_path / "elsewhere" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(source)
    output = clone.run(
        f"pytest --solver {mine} -k 'paper or decay or matters'", returncode=1
    )
    for promise in (
        "first steps equal the paper", "weight decay is the stated one",
        "every hyper parameter matters",
    ):
        assert f"BROKEN  {promise}" in output
