"""Token shards: the reader's refusals and what the writer leaves behind.

The tests build and read the files with ``struct`` alone.
"""
import gc
import os
import pickle
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark_utils.data import shards
from benchmark_utils.data.shards import TokenShards, write_shard, write_shards
from benchmark_utils.data.token_file import TokenFile

ROOT = Path(__file__).parents[1]
FINEWEB = ROOT.parent / "shared" / "data" / "fineweb10B"
PROPERTY = settings(
    derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def shard_bytes(tokens, magic=20240520, version=1, count=None, order="<"):
    count = len(tokens) if count is None else count
    header = struct.pack(order + "3i", magic, version, count)
    return header.ljust(1024, b"\0") + struct.pack(
        f"{order}{len(tokens)}H", *tokens
    )


def read_tokens(path):
    """The tokens of a good shard, or None: the format in five lines."""
    data = Path(path).read_bytes()
    if len(data) < 1024:
        return None
    magic, version, count = struct.unpack("<3i", data[:12])
    if (magic, version) != (20240520, 1) or count < 1:
        return None
    body = data[1024:]
    if len(body) != 2 * count:
        return None
    return list(struct.unpack(f"<{count}H", body))


def run_python(code, *args, flags=(), timeout=60):
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, args)], cwd=ROOT,
        capture_output=True, text=True, timeout=timeout, check=False,
    )


def leftovers(folder):
    return sorted(os.listdir(folder))


# --------------------------------------------------------------- the reader

int32 = st.integers(-2**31, 2**31 - 1)
tokens = st.lists(st.integers(0, 2**16 - 1), max_size=40)


@st.composite
def suspicious_files(draw):
    """Bytes that look like a shard, and in most cases are not one."""
    kind = draw(st.sampled_from([
        "noise", "header", "cut", "longer", "flipped", "other type",
    ]))
    if kind == "noise":
        return draw(st.binary(max_size=1500))
    if kind == "header":
        # Mostly right: each field is as often right as wrong.
        body = draw(tokens)
        return shard_bytes(
            body,
            magic=draw(st.sampled_from([20240520, 20240801, 20240522, 0])),
            version=draw(st.sampled_from([1, 1, 0, 2, 7, -1])),
            count=draw(st.one_of(st.just(len(body)), int32)),
            order=draw(st.sampled_from("<<<>")),
        )
    good = shard_bytes(draw(tokens))
    if kind == "cut":
        return good[:draw(st.integers(0, len(good)))]
    if kind == "longer":
        return good + draw(st.binary(max_size=100))
    if kind == "flipped":
        position = draw(st.integers(0, 11))
        mask = 1 << draw(st.integers(0, 7))
        return (good[:position] + bytes([good[position] ^ mask])
                + good[position + 1:])
    dtype = draw(st.sampled_from(["<u1", "<u4", "<i8", "<f4"]))
    values = np.array(draw(tokens)).astype(dtype)
    return shard_bytes([], count=len(values)) + values.tobytes()


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    return tmp_path_factory.mktemp("suspects") / "suspect_train_000001.bin"


@pytest.mark.slow
@settings(PROPERTY, max_examples=2500)
@given(suspicious_files())
def test_a_broken_shard_is_refused_by_name(suspect, content):
    suspect.write_bytes(content)
    expected = read_tokens(suspect)
    if expected is None:
        with pytest.raises((ValueError, OSError), match=suspect.name):
            TokenFile(suspect)
    else:
        assert TokenFile(suspect)[:].tolist() == expected


clock = count()


@pytest.mark.slow
@settings(PROPERTY, max_examples=500)
@given(tokens.filter(len), st.integers(1, 2**16))
def test_an_id_outside_the_vocabulary_is_refused_by_name(
        suspect, ids, vocab_size):
    suspect.write_bytes(shard_bytes(ids))
    # A new time for each example: a checked version of a file is remembered.
    os.utime(suspect, ns=(next(clock),) * 2)
    shards = TokenShards([suspect], vocab_size)
    outside = [i for i, token in enumerate(ids) if token >= vocab_size]
    if outside:
        with pytest.raises(ValueError, match=suspect.name) as error:
            shards.check_token_ids()
        assert f"{ids[outside[0]]} at position {outside[0]}," in str(
            error.value
        )
    else:
        shards.check_token_ids()


OPEN_ALL = """
import sys
from benchmark_utils.data.shards import TokenShards
for path in sys.argv[1:]:
    try:
        TokenShards([path], vocab_size=100).check_token_ids()
        print("READ", path)
    except (ValueError, OSError) as error:
        print("refused" if path in str(error) else "NAMELESS", path, error)
"""


@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["asserts", "no-asserts"])
def test_nothing_but_a_shard_is_read(tmp_path, flags):
    """In a process of its own: a reader that hangs or crashes fails the test,
    and ``python -O`` drops every assert."""
    good = shard_bytes([1, 2, 3])
    for name, content in {
        "empty": b"", "text": b"Once upon a time\n" * 100,
        "zeros": bytes(2000), "header only": good[:1024], "cut": good[:-1],
        "longer": good + b"\0", "no tokens": shard_bytes([]),
        "negative": shard_bytes([1], count=-1),
        "largest count": shard_bytes([1], count=2**31 - 1),
        "llama": shard_bytes([1, 0], magic=20240801, version=7, count=1),
        "big endian": shard_bytes([1, 2, 3], order=">"),
        "foreign id": shard_bytes([1, 100, 3]),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("pipe", tmp_path / "link to a pipe")
    os.symlink("/dev/zero", tmp_path / "link to a device")
    suspects = [tmp_path / name for name in leftovers(tmp_path)]
    suspects += [tmp_path / "missing", tmp_path / ("x" * 300), "/dev/null"]
    # A listening socket has a name in the file system too.
    with socket.socket(socket.AF_UNIX) as server, \
            tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/socket")
        done = run_python(OPEN_ALL, *suspects, f"{short}/socket", flags=flags)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == len(suspects) + 1
    assert [a for a in answers if not a.startswith("refused")] == []


def test_a_file_without_read_permission_is_refused_by_name():
    """As nobody if the tests run as root, who may read everything."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "secret.bin"
        path.write_bytes(shard_bytes([1, 2]))
        path.chmod(0)
        try:
            if is_root:
                os.seteuid(65534)
            with pytest.raises(PermissionError, match="secret.bin"):
                TokenFile(path)
        finally:
            if is_root:
                os.seteuid(0)


CUT_OFF = """
import os, sys
from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.data.shards import TokenShards
path = sys.argv[1]
batches = BatchLoader(TokenShards([path], 2**16), 4, 64).batches()
for _ in range(3):
    next(batches)
os.truncate(path, os.stat(path).st_size // 2)
try:
    print("READ", sum(1 for _ in batches))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_shard_that_is_cut_off_in_use_is_an_error_by_name(tmp_path):
    """A mapped file would end the process by SIGBUS, without a word."""
    path = tmp_path / "my_train_000001.bin"
    write_shard(path, [np.zeros(2**22, "<u2")])
    done = run_python(CUT_OFF, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{path} was cut off while it was in use: it had 4194304 tokens when "
        f"it was opened, and now ends at byte {512 + 2**22}. Restore it, and "
        "start the run again.\n"
    )


def test_a_shard_that_is_replaced_in_use_is_read_to_its_end(tmp_path):
    path = tmp_path / "my.bin"
    write_shard(path, [range(1000)])
    tokens = TokenFile(path)
    write_shard(path, [[7] * 1000])
    assert tokens[:].tolist() == list(range(1000))
    path.unlink()
    assert tokens[999] == 999


def test_short_reads_are_put_together_and_failed_ones_named(
        tmp_path, monkeypatch):
    """Linux reads at most 2 GB at once."""
    write_shard(tmp_path / "my.bin", [range(1000)])
    tokens = TokenFile(tmp_path / "my.bin")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(
        descriptor, min(size, 77), offset
    ))
    assert tokens[100:900].tolist() == list(range(100, 900))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="error: '.*my.bin'"):
        tokens[10:20]


@settings(PROPERTY, max_examples=200)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40),
       st.integers(-50, 50) | st.none(), st.integers(-50, 50) | st.none())
def test_a_token_file_is_indexed_as_a_list(suspect, ids, start, stop):
    suspect.write_bytes(shard_bytes(ids))
    tokens = TokenFile(suspect)
    assert tokens[start:stop].tolist() == ids[start:stop]
    assert list(tokens) == ids == np.asarray(tokens).tolist()
    assert pickle.loads(pickle.dumps(tokens))[:].tolist() == ids
    if start is not None and start not in range(-len(ids), len(ids)):
        with pytest.raises(IndexError):
            tokens[start]
    elif start is not None:
        assert tokens[start] == ids[start]


def test_token_files_close_with_their_last_user(tmp_path):
    write_shard(tmp_path / "my.bin", [range(10)])
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        TokenFile(tmp_path / "my.bin")
        with pytest.raises(ValueError):
            TokenFile(__file__)
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before


def test_opening_reads_headers_only(tmp_path):
    """103 shards of FineWeb's size open in no time and no memory."""
    with pytest.raises(ValueError, match="at least one"):
        TokenShards([], vocab_size=10)
    paths = []
    for index in range(103):
        paths.append(tmp_path / f"sparse_{index:06d}.bin")
        with open(paths[-1], "wb") as file:
            file.write(shard_bytes([], count=10**8))
            file.truncate(200_001_024)
    start = time.perf_counter()
    shards = TokenShards(paths, vocab_size=50257)
    assert time.perf_counter() - start < 3
    assert shards.num_tokens == 103 * 10**8


@pytest.mark.skipif(
    not FINEWEB.is_dir(), reason="no FineWeb shards beside the repository"
)
def test_real_fineweb_shards_are_read():
    paths = sorted(FINEWEB.glob("*.bin"))
    shards = TokenShards(paths, vocab_size=50257)
    shards.check_token_ids()
    for path, tokens in zip(paths, shards.arrays, strict=True):
        assert tokens[:].tolist() == read_tokens(path)
    # GPT-2's separator leads the validation shard's first document.
    assert shards.arrays[-1][0] == 50256
    with pytest.raises(ValueError, match="50256 at position"):
        TokenShards(paths, vocab_size=50256).check_token_ids()


# --------------------------------------------------------------- the writer

arrays = st.lists(
    st.tuples(
        tokens, st.sampled_from(["<u2", ">u2", "i4", "i8", "u8", list])
    ).map(lambda drawn: (
        drawn[0] if drawn[1] is list else np.array(drawn[0], drawn[1])
    )), max_size=6,
)


@settings(PROPERTY, max_examples=200)
@given(arrays)
def test_written_tokens_are_read_back(suspect, stream):
    written = [int(token) for part in stream for token in part]
    if not written:
        with pytest.raises(ValueError, match="no tokens"):
            write_shard(suspect, stream)
        return
    assert write_shard(suspect, iter(stream)) == len(written)
    assert suspect.stat().st_size == 1024 + 2 * len(written)
    assert read_tokens(suspect) == written
    assert TokenFile(suspect)[:].tolist() == written


@settings(PROPERTY, max_examples=150)
@given(stream=arrays, shard_tokens=st.integers(1, 50))
def test_a_stream_is_cut_into_full_shards(
        tmp_path_factory, stream, shard_tokens):
    folder = tmp_path_factory.mktemp("stream", numbered=True) / "new"
    written = [int(token) for part in stream for token in part]
    if not written:
        with pytest.raises(ValueError, match="no tokens"):
            write_shards(folder, "my_train", stream, 2**16, shard_tokens)
        return
    paths = write_shards(folder, "my_train", iter(stream), 2**16, shard_tokens)
    assert [path.name for path in paths] == leftovers(folder) == [
        f"my_train_{i + 1:06d}.bin" for i in range(len(paths))
    ]
    read = [read_tokens(path) for path in paths]
    assert {len(part) for part in read[:-1]} <= {shard_tokens}
    assert 1 <= len(read[-1]) <= shard_tokens
    assert list(chain(*read)) == written


@pytest.mark.parametrize("bad", [
    [1.0, 2.0], [[1, 2], [3, 4]], 3, [True, False], ["a"], [None],
    [-1], [10], [0, 10], [2**16], [2**70], np.array([2**63], "u8"),
], ids=repr)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, bad):
    for write in (
        lambda: write_shard(tmp_path / "my.bin", [[1, 2], bad], 10),
        lambda: write_shards(tmp_path, "my", [[1, 2], bad], 10, 1),
    ):
        with pytest.raises(ValueError, match="my"):
            write()
        assert leftovers(tmp_path) == []


def test_more_than_the_format_can_hold_is_refused(tmp_path, monkeypatch):
    """uint16 limits the vocabulary, the header the number of tokens."""
    for vocab_size in 0, -1, 2**16 + 1:
        with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}"):
            write_shard(tmp_path / "my.bin", [[1]], vocab_size)
    monkeypatch.setattr(shards, "MAX_TOKENS", 5)
    with pytest.raises(ValueError, match="at most 5"):
        write_shard(tmp_path / "my.bin", [[1, 2, 3], [4, 5, 6]])
    assert leftovers(tmp_path) == []
    with pytest.raises(ValueError, match="shard_tokens=6"):
        write_shards(tmp_path, "my", [[1]], shard_tokens=6)


def test_a_stream_that_fails_leaves_what_was_there(tmp_path):
    write_shard(tmp_path / "my.bin", [[1, 2, 3]])

    def stream():
        yield from ([4] * 10**5, [5] * 10**5)
        raise RuntimeError("the tokenizer broke")

    with pytest.raises(RuntimeError, match="tokenizer"):
        write_shard(tmp_path / "my.bin", stream())
    with pytest.raises(RuntimeError, match="tokenizer"):
        write_shards(tmp_path, "other", stream(), shard_tokens=1000)
    assert leftovers(tmp_path) == ["my.bin"]
    assert read_tokens(tmp_path / "my.bin") == [1, 2, 3]


@pytest.mark.parametrize("error", [
    ConnectionResetError(104, "reset by peer"), OSError("no route"),
    FileNotFoundError(2, "not there", "book.txt"),
], ids=repr)
def test_the_streams_own_errors_are_not_blamed_on_the_shard(tmp_path, error):
    def stream():
        yield [1]
        raise error

    message = str(error)
    with pytest.raises(type(error)) as raised:
        write_shard(tmp_path / "my.bin", stream())
    assert str(raised.value) == message
    assert leftovers(tmp_path) == []


def test_a_second_corpus_is_not_mixed_with_the_first(tmp_path):
    write_shards(tmp_path, "my", [range(10)], shard_tokens=4)
    with pytest.raises(FileExistsError, match="my_000001.bin"):
        write_shards(tmp_path, "my", [[1]])
    write_shards(tmp_path, "other", [[1]])
    assert len(leftovers(tmp_path)) == 4


def test_a_killed_writer_leaves_no_shard(tmp_path):
    code = (
        "import itertools, sys\n"
        "from benchmark_utils.data.shards import write_shard\n"
        "write_shard(sys.argv[1], itertools.repeat([7] * 1000))\n"
    )
    path = tmp_path / "my.bin"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 60
        while not any(file.stat().st_size for file in tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    assert list(tmp_path.glob("*.bin")) == []
    assert write_shard(path, [[1, 2]]) == 2


@pytest.mark.parametrize("write", [
    "write_shard(folder + '/my.bin', stream)",
    "write_shards(folder, 'my', stream, shard_tokens=300_000)",
])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, write):
    """The limit on a file's size stands for the disk's."""
    done = run_python(
        "import resource, sys\n"
        "from benchmark_utils.data.shards import write_shard, write_shards\n"
        "folder, stream = sys.argv[1], ([7] * 100 for _ in range(10_000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        + write, tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("OSError")
    assert str(tmp_path / "my") in done.stderr.splitlines()[-1]
    assert leftovers(tmp_path) == []


def test_writers_of_one_shard_at_a_time_never_mix(tmp_path):
    path = tmp_path / "my.bin"
    with ThreadPoolExecutor(8) as pool:
        writing = [
            pool.submit(write_shard, path, [[i] * 100] * 50)
            for i in range(40)
        ]
        while not all(job.done() for job in writing):
            if path.exists():
                assert len(set(read_tokens(path))) == 1
        assert [job.result() for job in writing] == [5000] * 40
    assert len(set(read_tokens(path))) == 1
    assert leftovers(tmp_path) == ["my.bin"]


def test_a_shard_gets_the_permissions_of_any_new_file(tmp_path):
    """Readable by the group of a shared folder, if the user's umask says."""
    mask = os.umask(0o002)
    try:
        write_shard(tmp_path / "my.bin", [[1]])
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "my.bin").st_mode) == 0o664
