"""Text files as a corpus: selection, split, tokens, refusals.

The tests cut the shards at the separator, 256, which is not a byte.
"""
import codecs
import itertools
import json
import multiprocessing
import os
import pickle
import re
import resource
import subprocess
import sys
import sysconfig
import time
from itertools import chain
from pathlib import Path

import joblib
import numpy as np
import pytest
from benchopt.utils.run_context import RunContext

from benchmark_utils.console.errors import UserError
from benchmark_utils.data import shards
from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.tokenizers import make_encoder
from conftest import TINY_OBJECTIVE

ROOT = Path(__file__).parents[1]
# Processes that have everything imported.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def text(bench, tmp_path, monkeypatch):
    """Make a Text dataset; its shards are written to tmp_path / "data"."""
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path / "data"))
    dataset, = bench.check_dataset_patterns(["Text"], class_only=True)

    def make(path, **parameters):
        path = path if path is None else str(path)
        return dataset.get_instance(path=path, **parameters)

    return make


@pytest.fixture
def novels(tmp_path):
    """A folder of folders with 40 texts, partly Greek, of up to 15,000
    characters, no two lines of which are alike."""
    folder = tmp_path / "novels"
    for i in range(40):
        file = folder / f"shelf{i % 3}" / f"{i:02d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(
            f"Novel {i}, {line}: \u03bb\u03cc\u03b3\u03bf\u03c2\n"
            for line in range(1 + 20 * i)
        ), encoding="utf-8")
    return folder


def contents(folder, pattern="**/*.txt"):
    return sorted(file.read_bytes() for file in folder.glob(pattern))


def cut(document):
    """A document's passages of 2,048 characters."""
    text = document.decode("utf-8")
    return [text[i:i + 2048].encode("utf-8")
            for i in range(0, len(text), 2048)]


def passages(corpus):
    """The passages in shards of bytes, in their order."""
    tokens = np.concatenate(corpus.arrays)
    assert tokens[0] == 256, "the separator leads the first passage"
    starts = np.flatnonzero(tokens == 256)
    return [part[1:].astype(np.uint8).tobytes()
            for part in np.split(tokens, starts[1:])]


def sides(dataset):
    data = dataset.get_data()
    return passages(data["train"]), passages(data["val"])


def assert_holds(both_sides, expected):
    """Each document is whole on one side, except one that may be divided, and
    once. A tenth of the characters is for validation."""
    train, val = map(sorted, both_sides)
    on_train = [d for d in expected if set(cut(d)) <= set(train)]
    on_val = [d for d in expected if set(cut(d)) <= set(val)]
    divided = [d for d in expected if d not in on_train + on_val]
    assert len(divided) <= 1
    total = sum(len(document.decode()) for document in expected)
    before = max(1, total // 10) - sum(len(d.decode()) for d in on_val)
    for document in divided:
        text = document.decode()
        on_train.append(text[:-before].encode())
        on_val.append(text[-before:].encode())
    assert train == sorted(chain(*map(cut, on_train)))
    assert val == sorted(chain(*map(cut, on_val)))
    assert divided or before == 0


# ------------------------------------------------------------- what is read

@pytest.mark.parametrize("num_characters", [2, 9, 10, 3000, 200_000])
def test_a_single_file_is_split_by_position(text, tmp_path, num_characters):
    """As nanoGPT does it: the last tenth of input.txt is for validation."""
    corpus = "".join(f"{i}\u03bb" for i in range(num_characters))
    corpus = corpus[:num_characters]
    (tmp_path / "input.txt").write_text(corpus, encoding="utf-8")
    train, val = sides(text(tmp_path / "input.txt"))
    end = num_characters - max(1, num_characters // 10)
    assert sorted(train) == sorted(cut(corpus[:end].encode()))
    assert sorted(val) == sorted(cut(corpus[end:].encode()))


@pytest.mark.parametrize("small", ["A note.", "Another note, not longer."])
def test_files_of_all_sizes_are_split_by_size(text, tmp_path, small):
    (tmp_path / "large.txt").write_text("A long story, not finished. " * 5000)
    (tmp_path / "small.txt").write_text(small)
    data = text(tmp_path / "*.txt").get_data()
    share = data["val"].num_tokens / data["train"].num_tokens
    assert share == pytest.approx(1 / 9, rel=0.01)


def test_bytes_per_token_are_those_of_the_validation_text(text, novels):
    data = text(novels).get_data()
    read = passages(data["val"])
    assert data["bytes_per_token"] == pytest.approx(
        sum(map(len, read)) / sum(len(passage) + 1 for passage in read)
    )
    # The second time, they come from corpus.json.
    again = text(novels).get_data()
    assert again["bytes_per_token"] == data["bytes_per_token"]


def test_results_have_bits_per_byte_where_bytes_are_known(
        text, novels, bench):
    parameters = TINY_OBJECTIVE | {"sequence_length": 16, "val_tokens": 160}
    objective = bench.get_benchmark_objective().get_instance(**parameters)
    data = text(novels, target=2.0).get_data()

    def first_row(**changes):
        RunContext().set_run_context(objective, None, None, 0, base_seed=0)
        objective.set_data(**data | changes)
        return objective.evaluate_result(**objective.get_one_result())

    row = first_row()
    # An untrained model's loss is nearly that of equal probabilities.
    per_token = np.log2(257)
    assert row["bits_per_byte"] == pytest.approx(
        per_token / data["bytes_per_token"], rel=0.02
    )
    assert "bits_per_byte" not in first_row(bytes_per_token=None)


def test_order_and_split_follow_from_the_contents_alone(
        text, novels, tmp_path, capsys):
    before = sides(text(novels))
    shown = capsys.readouterr().out
    for i, file in enumerate(sorted(novels.rglob("*.txt"))):
        file.rename(novels / f"{(7 * i) % 40}.txt")
    novels.rename(tmp_path / "elsewhere")
    assert sides(text(tmp_path / "elsewhere")) == before
    assert capsys.readouterr().out == shown
    # Neighbours are from different documents: no long one fills a batch.
    novel = [passage.split(b",")[0][-2:] for passage in before[0]]
    assert len(novel) > 100
    assert np.mean([a == b for a, b in itertools.pairwise(novel)]) < 0.2


def test_the_problem_is_the_parameters_and_is_printed(text, novels, capsys):
    assert text(novels).get_data()["repeat"] is False
    capsys.readouterr()
    data = text(novels, target=1.5, repeat=True).get_data()
    assert (data["target"], data["entropy"], data["repeat"]) == (
        1.5, None, True
    )
    for side in "train", "val":
        assert data[side].vocab_size == 257
        data[side].check_token_ids()
    shown = capsys.readouterr().out
    assert "as bytes, vocabulary of 257, content " in shown
    train, val = data["train"].num_tokens, data["val"].num_tokens
    assert train + val == pytest.approx(sum(
        len(passage) + 1 for document in contents(novels)
        for passage in cut(document)
    ), abs=1)  # the document that is divided may have a passage more
    assert re.search(rf"training: {train:,} tokens in \d+ documents", shown)
    assert re.search(rf"validation: {val:,} tokens in \d+ documents", shown)
    assert "skipped" not in shown


def test_every_document_once_on_one_side(text, novels):
    """All of a folder, or those that a glob matches."""
    assert_holds(sides(text(novels)), contents(novels))
    for i in range(5):
        (novels / "shelf0" / f"{i}.md").write_text(f"# Essay {i}\n")
    for pattern in "**/*.md", "*1/*.txt":
        assert_holds(sides(text(novels / pattern)), contents(novels, pattern))


def test_repeated_empty_and_hidden_files_are_left_out(text, novels):
    expected = sides(text(novels))
    (novels / "empty.txt").write_text("")
    (novels / "copy.txt").write_bytes(contents(novels)[7])
    (novels / ".hidden.txt").write_text("secret")
    (novels / ".git").mkdir()
    (novels / ".git" / "config").write_text("[core]")
    os.mkfifo(novels / "pipe.txt")
    (novels / "dangling.txt").symlink_to("nowhere")
    (novels / "loop").symlink_to(novels)
    assert sides(text(novels)) == expected


def test_files_that_are_no_text_are_skipped_counted_and_named(
        text, novels, capsys):
    expected = sides(text(novels))
    assert "skipped" not in capsys.readouterr().out
    for name, data in {
        "a latin.txt": "caf\xe9".encode("latin-1"), "b.png": b"\x89PNG\r\n",
        "c.txt": "caf\xe9".encode("utf-16"),
        "d.txt": "abc".encode("utf-16-le"), "e.txt": b"",
        "f.txt": contents(novels)[3],
        "g.txt": codecs.BOM_UTF32_LE + "abc".encode("utf-32-le"),
        "h.txt": codecs.BOM_UTF32_BE + "abc".encode("utf-32-be"),
    }.items():
        (novels / name).write_bytes(data)
    assert sides(text(novels)) == expected
    shown = capsys.readouterr().out
    for reason, first in {
        "2 file(s) that are not UTF-8": "a latin.txt",
        "1 file(s) that are UTF-16: convert them (iconv -f UTF-16 -t UTF-8)":
            "c.txt",
        "2 file(s) that are UTF-32: convert them (iconv -f UTF-32 -t UTF-8)":
            "g.txt",
        "1 file(s) that are binary, with zero bytes": "d.txt",
        "1 file(s) that are empty": "e.txt",
        "1 file(s) that have the content of another": "",
    }.items():
        assert f"skipped: {reason}, the first is {novels}" in shown
        assert first in shown


@pytest.mark.parametrize("name, encoding", [
    (b"caf\xe9.txt", "utf-8:strict"),
    ("caf\u00e9.txt".encode(), "ascii:strict"),
], ids=["UTF-8", "ASCII"])
@pytest.mark.slow
def test_any_name_is_printed_on_any_terminal(novels, tmp_path, name, encoding):
    with open(os.fsencode(novels) + b"/" + name, "wb") as file:
        file.write(b"\xff")
    done = subprocess.run(
        [sys.executable, "-m", "benchopt", "prepare", ROOT, "-d",
         f"Text[path={novels}]"], capture_output=True,
        env=os.environ | {
            "PYTHONIOENCODING": encoding, "BENCHOPT_DATA_HOME": str(tmp_path),
            "BENCHOPT_CACHE": str(tmp_path / "cache"),
        }, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"1 file(s) that are not UTF-8, the first is" in done.stdout
    assert b"/caf" in done.stdout


def test_token_files_of_nanogpt_are_told_from_text(text, tmp_path):
    np.arange(3000, dtype="<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"train\.bin(.|\n)*write_shard"):
        text(tmp_path / "train.bin").get_data()
    with pytest.raises(ValueError, match="nanoGPT's.*write_shard"):
        shards.TokenShards([tmp_path / "train.bin"], 300)


def test_the_default_is_what_python_carries(text):
    """Found here by walking the library, not by its list of modules."""
    library = Path(sysconfig.get_path("stdlib"))
    found = set()
    for folder, folders, names in os.walk(library):
        folders[:] = set(folders) - {
            "site-packages", "dist-packages", "test", "tests", "idle_test"
        }
        for name in names:
            if name.endswith(".py"):
                found.update(cut(Path(folder, name).read_bytes()))
    start = time.perf_counter()
    data = text(None).get_data()
    first = time.perf_counter() - start
    assert data["train"].num_tokens > 5e6
    assert data["val"].num_tokens > 2e5
    read = set(passages(data["train"])) | set(passages(data["val"]))
    # All but those of the one document that is divided.
    assert len(read - found) < 0.01 * len(read)
    # A module, a package's, and the language reference.
    for name in "argparse.py", "json/decoder.py", "pydoc_data/topics.py":
        assert read.issuperset(cut((library / name).read_bytes()))
    start = time.perf_counter()
    text(None).get_data()
    assert time.perf_counter() - start < 2 and first < 20


# ---------------------------------------------------------------- tokenizers

def test_gpt2_without_tiktoken_says_how_to_install_it(
        text, novels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match="pip install tiktoken"):
        text(novels, tokenizer="gpt2").get_data()
    assert not (tmp_path / "data").exists()


def test_gpt2_without_network_says_how_to_bring_the_vocabulary(
        text, novels, tmp_path, monkeypatch):
    pytest.importorskip("tiktoken")
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in "https_proxy", "HTTPS_PROXY":  # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(OSError, match="TIKTOKEN_CACHE_DIR"):
        text(novels, tokenizer="gpt2").get_data()
    assert not (tmp_path / "data").exists()


def test_gpt2_documents_are_led_by_its_separator(text, novels, monkeypatch):
    """With tiktoken itself, and a vocabulary of bytes and one merge."""
    tiktoken = pytest.importorskip("tiktoken")
    (novels / "trap.txt").write_text("Text says <|endoftext|> and goes on.")
    # Shards of bytes of the same text are not taken for GPT-2's.
    text(novels).get_data()
    toy = tiktoken.Encoding(
        "toy", pat_str=r"\s+|\S+", special_tokens={"<|endoftext|>": 50256},
        mergeable_ranks={bytes([i]): i for i in range(256)} | {b"No": 256},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": toy}.get)
    data = text(novels, tokenizer="gpt2").get_data()
    decoded = {}
    for side in "train", "val":
        assert data[side].vocab_size == 50257
        tokens = np.concatenate(data[side].arrays)
        starts = np.flatnonzero(tokens == 50256)
        assert starts[0] == 0 and 256 in tokens
        decoded[side] = [toy.decode_bytes(part[1:].tolist())
                         for part in np.split(tokens, starts[1:])]
    assert_holds(decoded.values(), contents(novels))


@pytest.mark.parametrize("sample", [
    "", "plain", "\0\n\r\n", "\u03bb\U0001f600"
])
def test_bytes_are_utf8(sample):
    assert bytes(make_encoder("bytes")(sample)) == sample.encode("utf-8")


# ------------------------------------------------------------ what is refused

@pytest.mark.parametrize("tokenizer", ["gpt4", "", None])
def test_an_unknown_tokenizer_is_refused(text, novels, tokenizer):
    with pytest.raises(ValueError, match="must be one of 'bytes', 'gpt2'"):
        text(novels, tokenizer=tokenizer)


def test_a_path_without_documents_is_refused(text, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in "missing", "empty", "empty/*.txt", "empty/**/*":
        with pytest.raises(ValueError, match="matches no files"):
            text(tmp_path / path).get_data()
    with pytest.raises(ValueError, match="a folder, a file or a glob"):
        text("")
    with pytest.raises(ValueError, match="is empty. Give a folder"):
        text(" ").get_data()
    assert not (tmp_path / "data").exists()


def test_files_without_text_are_refused_with_the_reasons(text, tmp_path):
    for name, content in ("broken", b"\xff"), ("empty", b""), ("one", b"1"):
        (tmp_path / f"{name}.txt").write_bytes(content)
    with pytest.raises(ValueError, match=(
        r"has no text(.|\n)*1 file\(s\) that are not UTF-8"
    )):
        text(tmp_path / "*.txt").get_data()
    assert not (tmp_path / "data").exists()


def test_too_little_text_for_a_batch_is_refused(text, novels):
    data = text(novels).get_data()
    tokens = data["val"].num_tokens
    with pytest.raises(ValueError, match=f"holds {tokens}. Use a smaller"):
        BatchLoader(data["val"], 64, 1024)


def test_text_that_changes_while_it_is_read_is_refused(
        text, novels, tmp_path):
    dataset = text(novels)
    dataset._get_state()
    (novels / "shelf1" / "22.txt").write_text("Another ending.")
    with pytest.raises(ValueError, match="22.txt was changed while"):
        dataset.get_data()
    assert list((tmp_path / "data").rglob("*.*")) == []


# ------------------------------------------------------- written once, cached

def test_shards_are_written_once(text, novels, tmp_path, monkeypatch):
    first = sides(text(novels))
    folder, = (tmp_path / "data" / "text").iterdir()
    assert sorted(os.listdir(folder)) == [
        "corpus.json", "text_train_000001.bin", "text_val_000001.bin"
    ]
    times = [file.stat().st_mtime_ns for file in folder.iterdir()]
    assert sides(text(novels)) == first
    assert [file.stat().st_mtime_ns for file in folder.iterdir()] == times
    # Other text and other tokenizers have folders of their own.
    gpt2 = text(novels, tokenizer="gpt2")
    assert gpt2._get_state() != text(novels)._get_state()
    (novels / "new.txt").write_text("A new novel.")
    assert sides(text(novels)) != first
    assert len(os.listdir(tmp_path / "data" / "text")) == 2


@pytest.mark.parametrize("name", [
    "text_train_000001.bin", "text_val_000001.bin", "corpus.json"
])
@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_damaged_shards_are_refused(text, novels, tmp_path, name, damage):
    expected = sides(text(novels))
    folder, = (tmp_path / "data" / "text").iterdir()
    file = folder / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 5)
    else:
        other = text(novels / "shelf1")
        other.get_data()
        file.write_bytes(
            (tmp_path / "data" / "text" / other._content / name).read_bytes()
        )
    with pytest.raises(ValueError, match=f"{folder} is damaged.*Delete this"):
        text(novels).get_data()
    for part in folder.iterdir():
        part.unlink()
    folder.rmdir()
    assert sides(text(novels)) == expected


def test_processes_at_the_same_time_write_one_corpus(
        text, novels, tmp_path):
    barrier = FORK.Barrier(4)

    def work():
        dataset = text(novels)
        dataset._get_state()
        barrier.wait()
        dataset.get_data()

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    folder, = (tmp_path / "data" / "text").iterdir()
    assert len(os.listdir(folder)) == 3
    assert_holds(sides(text(novels)), contents(novels))


def test_a_killed_writer_leaves_nothing_that_is_taken_for_shards(
        text, novels, tmp_path, monkeypatch):
    """Killed when the training shards are complete and nothing else is."""
    half_way = FORK.Event()

    def work():
        write_shard = shards.write_shard

        def write_one(path, *arguments):
            if "val" in path.name:
                half_way.set()
                time.sleep(600)
            return write_shard(path, *arguments)

        monkeypatch.setattr(shards, "write_shard", write_one)
        text(novels).get_data()

    process = FORK.Process(target=work)
    process.start()
    assert half_way.wait(60)
    process.kill()
    process.join()
    left, = (tmp_path / "data" / "text").iterdir()
    assert left.name.startswith(".")
    assert os.listdir(left) == ["text_train_000001.bin"]
    assert_holds(sides(text(novels)), contents(novels))


def test_a_full_disk_is_named_and_leaves_nothing(text, novels, tmp_path):
    """The limit on a file's size stands for the disk's."""
    (novels / "long.txt").write_text("Long. " * 100_000)
    errors = FORK.SimpleQueue()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            text(novels).get_data()
        except OSError as error:
            errors.put(str(error))

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    assert not errors.empty() and "_000001.bin" in errors.get()
    assert os.listdir(tmp_path / "data" / "text") == []


# ------------------------------------------------ benchopt's cache of results

def test_an_edited_text_is_another_dataset_to_benchopt(text, novels):
    key = joblib.hash(text(novels))
    assert joblib.hash(text(novels)) == key
    file = novels / "shelf1" / "22.txt"
    original = file.read_text()
    file.write_text(original + "Epilogue.")
    assert joblib.hash(text(novels)) != key
    file.write_text(original)
    assert joblib.hash(text(novels)) == key
    # Hashing never fails, whatever the path.
    joblib.hash(text(novels / "missing"))


def test_a_worker_reads_the_shards_of_the_run_it_belongs_to(
        text, novels, tmp_path):
    dataset = text(novels)
    expected = sides(dataset)
    sent = pickle.dumps(dataset)
    (novels / "shelf1" / "22.txt").write_text("Another ending.")
    assert sides(pickle.loads(sent)) == expected
    # It needs no text where the shards are.
    novels.rename(tmp_path / "moved novels")
    assert sides(pickle.loads(sent)) == expected
    (tmp_path / "moved novels").rename(novels)
    # On a machine that has neither these shards nor this text:
    for folder in (tmp_path / "data" / "text").iterdir():
        folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="have changed since this run"):
        pickle.loads(sent).get_data()


@pytest.mark.parametrize("path, sentence", [
    ("/nowhere", "Text: path=/nowhere matches no files. Give a folder"),
    ("' '", "Text: path=' ' is empty. Give a folder"),
])
def test_a_path_to_nothing_is_refused_when_it_is_chosen(
        bench, path, sentence):
    """Not after the training on the datasets before it."""
    with pytest.raises(UserError) as error:
        bench.check_dataset_patterns(["Simulated", f"Text[path={path}]"])
    assert str(error.value).startswith(sentence)


@pytest.mark.slow
def test_an_edited_text_never_gets_cached_results(novels, tmp_path):
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from benchopt.runner import run_benchmark
from benchopt.results import read_results
from conftest import TINY_OBJECTIVE, TINY_SOLVER, selector
novels = [*Path({str(novels)!r}).rglob("*.txt")]
originals = [file.read_text() for file in novels]
losses = []
for end in "", "", "Epilogue.", "":
    for file, original in zip(novels, originals):
        file.write_text(original + end)
    results = run_benchmark(
        {str(ROOT)!r},
        solver_names=[selector("SGD", TINY_SOLVER)],
        objective_filters=[selector("nanoGPT", TINY_OBJECTIVE)],
        dataset_names=[selector("Text", {{"path": {str(novels)!r}}})],
        max_runs=10_000, plot_result=False,
        output_file={str(tmp_path / "results.parquet")!r},
    )
    losses.append(float(read_results(results).objective_value.iloc[-1]))
Path({str(tmp_path / "losses.json")!r}).write_text(json.dumps(losses))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
        env=os.environ | {
            "BENCHOPT_DATA_HOME": str(tmp_path / "data"),
            "BENCHOPT_CACHE": str(tmp_path / "cache"),
        }, check=True, timeout=300,
    )
    first, again, edited, restored = json.loads(
        (tmp_path / "losses.json").read_text()
    )
    assert first == again == restored != edited
    assert done.stdout.count("(cached)") == 2
