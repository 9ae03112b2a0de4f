"""docs/data.rst: one's own text and tokens become a dataset as it says."""
import pytest
from docs import Clone, code_blocks

PAGE = "docs/data.rst"


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_a_folder_of_text_is_a_dataset(clone):
    on_text, _ = code_blocks(PAGE, "bash")
    assert "vocabulary of 257" in clone.run(on_text + " --no-display")
    frame = clone.results()
    assert frame.stop_val.iloc[-1] == 20
    assert frame.objective_value.iloc[-1] < frame.objective_value.iloc[0]


def test_a_stream_of_tokens_is_a_dataset(clone):
    writer, dataset = code_blocks(PAGE, "python")
    (clone.folder / "write.py").write_text(writer)
    clone.run("python write.py")
    (clone.folder / "datasets" / "mine.py").write_text(dataset)
    _, on_tokens = code_blocks(PAGE, "bash")
    # What it is where the tests don't set it.
    home = str(clone.folder / "data")
    clone.run(on_tokens + " --no-display", BENCHOPT_DATA_HOME=home)
    frame = clone.results()
    assert (frame.dataset_name == "Mine[repeat=False,target=5.0]").all()
    assert frame.objective_value.iloc[-1] < frame.objective_value.iloc[0]
