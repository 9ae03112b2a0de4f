"""FineWeb's dataset: parameters, downloads, cache keys. No network is used."""
import os
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest

from benchmark_utils.data.shards import write_shard
from fake_hub import FakeHub

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def fineweb(bench, tmp_path, monkeypatch):
    """Make a FineWeb dataset, its shards below tmp_path / "home"."""
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path / "home"))
    klass, = bench.check_dataset_patterns(["FineWeb"], class_only=True)
    return lambda **parameters: klass.get_instance(**parameters)


def write_tiny_shards(folder, numbers=range(4), prefix="fineweb"):
    """Shards of the right names, full of their numbers."""
    for number in numbers:
        kind = "train" if number else "val"
        write_shard(
            folder / f"{prefix}_{kind}_{number:06d}.bin",
            [np.full(10, number)],
        )


@pytest.mark.parametrize("parameters", [
    *[{"num_train_shards": n} for n in [0, -1, 104, 1.5, "all", True]],
    *[{"revision": r} for r in [1, None, ""]], {"corpus": "edu"},
], ids=str)
def test_fineweb_refuses_what_does_not_exist(fineweb, parameters):
    (name, value), = parameters.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} must")):
        fineweb(**parameters)


def test_fineweb_edu_has_fewer_shards(fineweb):
    """The error comes when the command is parsed, before any run."""
    chosen = {"corpus": "fineweb-edu", "num_train_shards": 100}
    Dataset = type(fineweb())
    for refused in (
        lambda: fineweb(**chosen),
        lambda: Dataset.parameters.copy().update(chosen),
    ):
        with pytest.raises(ValueError, match=re.escape(
            "FineWeb[corpus=fineweb-edu,num_train_shards=99]"
        )):
            refused()


@pytest.mark.parametrize("corpus, shards", [
    ("fineweb", 103), ("fineweb-edu", 99),
])
def test_all_shards_of_a_corpus_are_the_default(fineweb, corpus, shards):
    for parameters in {}, {"num_train_shards": shards}:
        assert str(fineweb(corpus=corpus, **parameters)) == (
            f"FineWeb[corpus={corpus},num_train_shards={shards},repeat=False,"
            "revision=main]"
        )


def test_a_run_does_not_start_with_a_large_download(fineweb, tmp_path):
    with pytest.raises(ValueError) as caught:
        fineweb().get_data()
    message = str(caught.value)
    for expected in [
        "needs 104 shards that are not in", str(tmp_path / "home"),
        "20.8 GB, 28 minutes at", "at most 1 GB",
        'benchopt prepare . -d "FineWeb[num_train_shards=103]"',
        "configs/quickstart.yml", 'FineWeb[num_train_shards=1]"',
    ]:
        assert expected in message
    # What fits is tried: here, there is no network.
    with pytest.raises(OSError, match="offline mode"):
        fineweb(num_train_shards=4).get_data()
    # What is there counts.
    write_tiny_shards(tmp_path / "home" / "fineweb10B", range(100))
    with pytest.raises(OSError, match="lacks 4 of 104"):
        fineweb().get_data()


def test_preparing_fineweb_says_how_to_get_it_without_network(
    fineweb, tmp_path
):
    with pytest.raises(OSError) as caught:
        fineweb(corpus="fineweb-edu", num_train_shards=99).prepare()
    message = str(caught.value)
    for expected in [
        f"{tmp_path / 'home' / 'finewebedu10B'} lacks 100 of 100 file(s)",
        "finewebedu_val_000000.bin, finewebedu_train_000001.bin",
        "datasets/kjj0/finewebedu10B-gpt2/resolve/main/", "200,001,024",
        'benchopt prepare . -d "FineWeb[corpus=fineweb-edu,num_train_'
        'shards=99]"', "BENCHOPT_DATA_HOME", "data_paths: {finewebedu10B: ",
    ]:
        assert expected in message


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="real FineWeb tokens are not here"
)
def test_fineweb_uses_the_shards_of_a_shared_folder(
    fineweb, monkeypatch, capsys
):
    folder = SHARED_DATA / "fineweb10B"
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(SHARED_DATA))
    data = fineweb(num_train_shards=2).get_data()
    assert data["train"].num_tokens == 200_000
    assert data["val"].num_tokens == 100_000
    data["train"].check_token_ids()
    assert "3 file(s)" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before


def prepare(home, numbers, times=1):
    """Let benchopt prepare two training shards of a Hub with some shards,
    and return how often each was asked for."""
    source = home.parent / "source"
    write_tiny_shards(source, numbers)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with FakeHub(files, "kjj0/fineweb10B-gpt2") as hub:
        for _ in range(times):
            subprocess.run(
                [sys.executable, "-m", "benchopt", "prepare", ROOT, "-d",
                 "FineWeb[num_train_shards=2]"], check=True,
                env=os.environ | hub.environment | {
                    "BENCHOPT_CACHE": str(home.parent / "cache"),
                    "BENCHOPT_DATA_HOME": str(home),
                    "HF_HOME": str(home.parent / "hf"),
                },
            )
            (home / "fineweb10B" / "fineweb_val_000000.bin").rename(
                home.parent / "moved"
            )
    (home.parent / "moved").rename(
        home / "fineweb10B" / "fineweb_val_000000.bin"
    )
    return {name: len(hub.asked("cdn", name)) for name in files}


@pytest.mark.slow
def test_benchopt_prepares_as_many_shards_as_asked_for(tmp_path):
    """And the missing one again, though it has prepared these before."""
    assert prepare(tmp_path / "home", range(4), times=2) == {
        "fineweb_val_000000.bin": 2, "fineweb_train_000001.bin": 1,
        "fineweb_train_000002.bin": 1, "fineweb_train_000003.bin": 0,
    }
    folder = tmp_path / "home" / "fineweb10B"
    for path in folder.glob("*.bin"):
        assert path.read_bytes() == (
            tmp_path / "source" / path.name
        ).read_bytes()
    assert len(list(folder.glob("*.bin"))) == 3


@pytest.mark.parametrize("corpus, prefix, folder, target", [
    ("fineweb", "fineweb", "fineweb10B", 3.28),
    ("fineweb-edu", "finewebedu", "finewebedu10B", None),
])
def test_fineweb_is_a_language_model_problem(
    fineweb, tmp_path, corpus, prefix, folder, target
):
    write_tiny_shards(tmp_path / "home" / folder, prefix=prefix)
    data = fineweb(corpus=corpus, num_train_shards=2, repeat=True).get_data()
    assert [tokens[0] for tokens in data["train"].arrays] == [1, 2]
    assert [tokens[0] for tokens in data["val"].arrays] == [0]
    assert data["train"].vocab_size == data["val"].vocab_size == 50257
    assert (data["target"], data["entropy"], data["repeat"]) == (
        target, None, True
    )
    assert data["bytes_per_token"] is None


def test_a_target_is_asked_for_where_the_data_have_none(bench):
    objective = bench.get_benchmark_objective().get_instance()
    with pytest.raises(ValueError, match="have no target of their own"):
        objective.set_data(None, None, None, None, False)


@pytest.mark.slow
def test_cached_results_belong_to_the_content_of_verified_shards(
    fineweb, tmp_path
):
    """A copy without times, or a restored one, is the same data."""
    folder = tmp_path / "home" / "fineweb10B"

    def key():
        return joblib.hash(fineweb(num_train_shards=2))

    assert key() != key(), "missing shards equal nothing"
    prepare(tmp_path / "home", range(3))
    verified = key()
    assert key() == verified != joblib.hash(fineweb(num_train_shards=1))
    for path in folder.glob("*.bin"):
        os.utime(path, (1, 1))
    assert key() == verified
    # Another size is another content.
    with open(folder / "fineweb_train_000001.bin", "ab") as file:
        file.write(b"more")
    assert key() != key() != verified


def test_cached_results_belong_to_the_times_of_unverified_shards(
    fineweb, tmp_path
):
    folder = tmp_path / "home" / "fineweb10B"
    write_tiny_shards(folder)
    key = joblib.hash(fineweb(num_train_shards=2))
    assert joblib.hash(fineweb(num_train_shards=2)) == key
    os.utime(folder / "fineweb_train_000002.bin", (1, 1))
    assert joblib.hash(fineweb(num_train_shards=2)) != key


def test_a_broken_shard_of_unknown_origin_is_refused(fineweb, tmp_path):
    folder = tmp_path / "home" / "fineweb10B"
    write_tiny_shards(folder, [0])
    (folder / "fineweb_train_000001.bin").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="fineweb_train_000001.bin has 7"):
        fineweb(num_train_shards=1).get_data()
