"""docs/data.rst: shards are prepared, text and tokens become datasets as it
says."""
import numpy as np
import pytest

from docs import Clone, code_blocks

PAGE = "docs/data.rst"


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_shards_are_prepared(clone):
    """As far as that goes without a network."""
    prepare, _, _ = code_blocks(PAGE, "bash")
    for command, folder in zip(
        prepare.splitlines(), ["fineweb10B", "finewebedu10B"], strict=True
    ):
        output = clone.run(
            command, returncode=1, HF_HUB_OFFLINE="1",
            BENCHOPT_DATA_HOME=str(clone.folder / "data"),
        )
        assert f"data/{folder} lacks 19 of 19 file(s)" in output


def test_a_folder_of_text_is_a_dataset(clone):
    _, on_text, _ = code_blocks(PAGE, "bash")
    assert "vocabulary of 257" in clone.run(on_text + " --no-display")
    frame = clone.results()
    assert frame.stop_val.iloc[-1] == 20
    assert frame.objective_value.iloc[-1] < frame.objective_value.iloc[0]


def test_a_stream_of_tokens_is_a_dataset(clone):
    writer, dataset, _ = code_blocks(PAGE, "python")
    (clone.folder / "write.py").write_text(writer)
    clone.run("python write.py")
    (clone.folder / "datasets" / "mine.py").write_text(dataset)
    _, _, on_tokens = code_blocks(PAGE, "bash")
    # What it is where the tests don't set it.
    home = str(clone.folder / "data")
    clone.run(on_tokens + " --no-display", BENCHOPT_DATA_HOME=home)
    frame = clone.results()
    assert (frame.dataset_name == "Mine[repeat=False,target=5.0]").all()
    assert frame.objective_value.iloc[-1] < frame.objective_value.iloc[0]


def test_the_token_files_of_nanogpt_become_shards(clone):
    *_, convert = code_blocks(PAGE, "python")
    tokens = np.arange(30_000, dtype=np.uint16)
    for side in "train", "val":
        tokens.tofile(clone.folder / f"{side}.bin")
    (clone.folder / "convert.py").write_text(convert)
    clone.run("python convert.py")
    for side in "train", "val":
        shard = clone.folder / "data" / "mine" / f"mine_{side}_000001.bin"
        assert (np.fromfile(shard, "<u2", offset=1024) == tokens).all()
