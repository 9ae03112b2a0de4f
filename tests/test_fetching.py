"""Shards are fetched once, verified once, and never lost or wrongly served.

The client is huggingface_hub's own, in processes of its own, against a Hub on
loopback that fails in the ways networks do.
"""
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from benchmark_utils.data.shards import write_shard

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub  # noqa: E402

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
REPO = "owner/shards"
# What is received is kept in pieces of this size.
PIECE = 2**20
BIG = 3_000_000
FILES = {
    "a.bin": np.random.default_rng(1).bytes(10_000),
    "b.bin": np.random.default_rng(2).bytes(20_000),
    "big.bin": np.random.default_rng(3).bytes(BIG),
}
SMALL = ["a.bin", "b.bin"]
# A client that would have to read a file fails.
NOT_READ = "stamps.sha_fileobj = None"

CLIENT = """
import json, sys
from benchmark_utils import hub, stamps, transfer
transfer.RETRY_WAITS = (0.1, 0.1, 0.1)
{setup}
folder, revision, *names = sys.argv[1:]
try:
    paths = hub.fetch_shards("owner/shards", names, folder, revision)
    print("PATHS", json.dumps([str(path) for path in paths]))
except (OSError, ValueError) as error:
    print("ERROR", type(error).__name__, error)
"""
Answer = namedtuple("Answer", "paths error output stderr")


@pytest.fixture
def hub():
    with FakeHub(FILES, REPO) as hub:
        yield hub


@pytest.fixture
def start(tmp_path):
    """Start clients; end those that are left."""
    clients = []

    def start(hub, folder, names, revision="main", setup="", environment=None,
              **options):
        options = {
            "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True
        } | options
        clients.append(subprocess.Popen(
            [
                sys.executable, "-u", "-c", CLIENT.format(setup=setup),
                str(folder), revision, *names
            ],
            env=os.environ | {
                "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
            } | hub.environment | (environment or {}),
            **options,
        ))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.communicate()


@pytest.fixture
def fetch(start):
    """Let a client fetch files: fetch(hub, folder, names) -> Answer."""
    def fetch(*args, **kwargs):
        return answer_of(start(*args, **kwargs))

    return fetch


def answer_of(client):
    stdout, stderr = client.communicate(timeout=60)
    output, kind, rest = re.split(
        "^(PATHS|ERROR) ", stdout, maxsplit=1, flags=re.MULTILINE
    ) if client.returncode == 0 else (stdout, "", "")
    assert kind, stdout + stderr
    if kind == "PATHS":
        return Answer(json.loads(rest), None, output, stderr)
    return Answer(None, rest, output, stderr)


def assert_complete(folder, names=SMALL, files=FILES):
    """The folder holds these files, whole, and nothing half done."""
    for name in names:
        assert (folder / name).read_bytes() == files[name]
    assert sorted(p.name for p in folder.iterdir()) == [".hub", *names]
    assert not list(folder.glob(".hub/*.part"))
    assert not list(folder.glob(".hub/*.tmp"))


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_files_arrive_whole_and_in_silence(hub, fetch, tmp_path):
    folder = tmp_path / "not" / "there"
    answer = fetch(hub, folder, SMALL)
    assert answer.paths == [str(folder / name) for name in SMALL]
    assert_complete(folder)
    assert answer.stderr == ""
    assert answer.output == (
        f"Fetching 2 file(s), 30,000 bytes, from {hub.url}/datasets/{REPO}/"
        f"resolve/{'1' * 40}/ to {folder}\n"
    )


def test_a_person_sees_one_progress_bar(hub, start, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    client = start(hub, tmp_path / "data", [*SMALL, "big.bin"], stderr=theirs)
    assert answer_of(client).paths
    os.close(theirs)
    screen = ""
    with contextlib.suppress(OSError):  # all has been read
        while True:
            screen += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "Fetched: 100%" in screen
    assert {line[:7] for line in re.split(r"[\r\n]+", screen) if line} == {
        "Fetched"
    }


def test_stamped_files_are_neither_asked_for_nor_read(hub, fetch, tmp_path):
    fetch(hub, tmp_path / "data", SMALL)
    hub.requests.clear()
    answer = fetch(hub, tmp_path / "data", SMALL, setup=NOT_READ)
    assert answer.paths
    assert answer.output == ""
    assert hub.requests == []


def test_the_record_is_taken_once(hub, fetch, tmp_path):
    fetch(hub, tmp_path / "data", ["a.bin"])
    fetch(hub, tmp_path / "data", SMALL)
    assert_complete(tmp_path / "data")
    assert len(hub.asked("hub", "main")) == 1


def test_files_placed_by_hand_are_verified_and_kept(hub, fetch, tmp_path):
    for name in SMALL:
        (tmp_path / name).write_bytes(FILES[name])
    answer = fetch(hub, tmp_path, SMALL)
    assert answer.output == f"Verifying 2 file(s) in {tmp_path}\n"
    assert hub.bytes_sent == 0
    # And only once.
    assert fetch(hub, tmp_path, SMALL, setup=NOT_READ).paths


def test_a_file_that_was_touched_is_verified_again(hub, fetch, tmp_path):
    fetch(hub, tmp_path / "data", SMALL)
    os.utime(tmp_path / "data" / "a.bin")
    answer = fetch(hub, tmp_path / "data", SMALL)
    assert answer.output == f"Verifying 1 file(s) in {tmp_path / 'data'}\n"
    assert len(hub.asked("cdn", "a.bin")) == 1


@pytest.mark.parametrize("wrong", ["cut", "other", "folder"])
@pytest.mark.parametrize("stamped", [True, False])
def test_only_a_wrong_file_is_fetched_and_what_it_was_is_kept(
    hub, fetch, tmp_path, wrong, stamped
):
    if stamped:
        fetch(hub, tmp_path / "data", SMALL)
        hub.requests.clear()
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "b.bin").write_bytes(FILES["b.bin"])
    path = tmp_path / "data" / "a.bin"
    path.unlink(missing_ok=True)
    if wrong == "folder":
        path.mkdir()
        (path / "mine").write_bytes(b"mine")
    else:
        mine = FILES["a.bin"][:500] if wrong == "cut" else bytes(10_000)
        path.write_bytes(mine)
    answer = fetch(hub, tmp_path / "data", SMALL)
    problem = {
        "cut": "500 bytes instead of 10,000",
        "other": "SHA-256 95b532cc4381affdff0d956e12520a04129ed49d37e154228368"
                 "fe5621f0b9a2 instead of",
        "folder": "not a file",
    }[wrong]
    assert f"{path} is refused: {problem}" in answer.output
    assert f"a.bin that was there is kept as {path}.rejected" in answer.output
    assert not hub.asked("cdn", "b.bin")
    rejected = path.with_name("a.bin.rejected")
    if wrong == "folder":
        assert (rejected / "mine").read_bytes() == b"mine"
        shutil.rmtree(rejected)
    else:
        assert rejected.read_bytes() == mine
        rejected.unlink()
    assert_complete(tmp_path / "data")


@pytest.mark.parametrize("faults", [
    ["500", "502", "503"], ["429"], ["cut 2000000"], ["reset 2000000"],
    ["cut 100"], ["stall"], ["slow 2000000"], ["wrong"],
    ["cut 2000000", "whole"], ["cut 2000000", "504", "reset 10", "wrong"],
], ids=", ".join)
def test_faults_that_pass_are_survived(hub, fetch, tmp_path, faults):
    hub.faults["big.bin"] = list(faults)
    answer = fetch(hub, tmp_path / "data", ["big.bin"])
    assert answer.error is None
    assert hub.faults["big.bin"] == []
    assert_complete(tmp_path / "data", ["big.bin"])


@pytest.mark.parametrize("fault", ["429", "500", "503", "html"])
def test_the_record_is_asked_again(hub, fetch, tmp_path, fault):
    hub.faults["record"] = [fault]
    assert fetch(hub, tmp_path / "data", SMALL).paths
    assert_complete(tmp_path / "data")


@pytest.mark.parametrize("fault", ["cut 2000000", "reset 2000000"])
def test_a_download_cut_off_is_continued(hub, fetch, tmp_path, fault):
    hub.faults["big.bin"] = [fault]
    fetch(hub, tmp_path / "data", ["big.bin"])
    assert_complete(tmp_path / "data", ["big.bin"])
    assert [request.range for request in hub.asked("cdn", "big.bin")] == [
        None, f"bytes={PIECE}-"
    ]


def test_any_number_of_faults_is_survived_while_there_is_progress(
    hub, fetch, tmp_path
):
    _, files = hub.revisions["main"]
    files["huge.bin"] = np.random.default_rng(4).bytes(6 * PIECE)
    hub.faults["huge.bin"] = [f"reset {PIECE + 1000}"] * 5
    assert fetch(hub, tmp_path / "data", ["huge.bin"]).paths
    assert_complete(tmp_path / "data", ["huge.bin"], files)
    assert len(hub.asked("cdn", "huge.bin")) == 6


def test_a_download_given_up_is_continued_later(hub, fetch, tmp_path):
    hub.faults["big.bin"] = ["cut 2000000"] + ["500"] * 4
    answer = fetch(hub, tmp_path / "data", ["big.bin"])
    assert "The Hub can't be reached (HfHubHTTPError" in answer.error
    assert "500" in answer.error
    assert not (tmp_path / "data" / "big.bin").exists()
    assert fetch(hub, tmp_path / "data", ["big.bin"]).paths
    assert hub.asked("cdn", "big.bin")[-1].range == f"bytes={PIECE}-"
    assert_complete(tmp_path / "data", ["big.bin"])


def test_wrong_content_again_and_again_is_an_error(hub, fetch, tmp_path):
    hub.faults["a.bin"] = ["wrong"] * 9
    answer = fetch(hub, tmp_path / "data", SMALL)
    assert re.search(
        r"/a\.bin was received 2 times with SHA-256 \w{64} instead of \w{64}",
        answer.error,
    )
    assert not (tmp_path / "data" / "a.bin").exists()
    assert not (tmp_path / "data" / ".hub" / "a.bin.part").exists()


def test_a_refused_download_stops_the_others(hub, fetch, tmp_path):
    _, files = hub.revisions["main"]
    files["huge.bin"] = bytes(5 * PIECE)
    hub.faults |= {"a.bin": ["403"], "huge.bin": ["slow 1500000"]}
    answer = fetch(hub, tmp_path / "data", ["a.bin", "huge.bin"])
    assert "The Hub refuses" in answer.error and "403" in answer.error
    assert hub.bytes_sent < 4 * PIECE


def test_killed_in_mid_download_it_continues(hub, start, fetch, tmp_path):
    folder = tmp_path / "data"
    part = folder / ".hub" / "big.bin.part"
    hub.faults["big.bin"] = ["slow 1000000", "cut 100", "slow 500000"]
    client = start(hub, folder, ["big.bin", *SMALL])
    wait_until(lambda: part.exists() and part.stat().st_size >= PIECE)
    os.kill(client.pid, signal.SIGKILL)
    assert client.wait() == -signal.SIGKILL
    assert not (folder / "big.bin").exists()
    received = part.stat().st_size
    # Again, just after it has reconnected.
    client = start(hub, folder, ["big.bin", *SMALL])
    wait_until(lambda: len(hub.asked("cdn", "big.bin")) == 3)
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    assert part.stat().st_size == received
    assert fetch(hub, folder, ["big.bin", *SMALL]).paths
    assert_complete(folder, [*SMALL, "big.bin"])
    assert [request.range for request in hub.asked("cdn", "big.bin")] == [
        None, *[f"bytes={received}-"] * 3
    ]
    assert len(hub.asked("cdn", "a.bin")) == 1


def test_four_processes_download_once(hub, start, tmp_path):
    hub.faults["big.bin"] = ["slow 1500000"]
    clients = [
        start(hub, tmp_path / "data", ["a.bin", "big.bin"]) for _ in range(4)
    ]
    answers = [answer_of(client) for client in clients]
    assert all(answer.paths for answer in answers)
    assert_complete(tmp_path / "data", ["a.bin", "big.bin"])
    assert len(hub.asked("cdn", "a.bin")) == 1
    assert len(hub.asked("cdn", "big.bin")) == 1
    assert len(hub.asked("hub", "main")) == 1


def test_a_waiting_process_takes_over_from_a_killed_one(
    hub, start, tmp_path
):
    folder = tmp_path / "data"
    part = folder / ".hub" / "big.bin.part"
    hub.faults["big.bin"] = ["slow 700000"]
    first = start(hub, folder, ["big.bin"])
    wait_until(lambda: part.exists())
    second = start(hub, folder, ["big.bin"])
    assert second.stdout.readline() == (
        f"Waiting for another process at work in {folder}\n"
    )
    wait_until(lambda: part.stat().st_size >= PIECE)
    first.kill()
    first.wait()
    received = part.stat().st_size
    assert answer_of(second).paths
    assert_complete(folder, ["big.bin"])
    assert hub.asked("cdn", "big.bin")[-1].range == f"bytes={received}-"


class NoHub:
    """An address where nobody answers."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.environment = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}


OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_without_a_hub_the_error_says_what_from_where_and_how(
    hub, fetch, tmp_path
):
    nobody = NoHub()
    answer = fetch(nobody, tmp_path, SMALL)
    assert re.sub(r"\(Connect.* refused.*\)", "(...)", answer.error) == (
        f"HubUnavailable 2 of 2 file(s) missing or wrong in {tmp_path}:\n"
        "  a.bin: missing\n"
        "  b.bin: missing\n"
        "The Hub can't be reached (...). Where it can, fetch "
        f"{nobody.url}/datasets/{REPO}/resolve/main/<file> and put the files "
        f"into {tmp_path} under their names.\n"
    )
    # With the record of an earlier time, also how large.
    fetch(hub, tmp_path, ["a.bin"])
    answer = fetch(
        nobody, tmp_path, SMALL, environment=OFFLINE,
        setup="transfer.RETRY_WAITS = (99, 99, 99)",
    )
    assert "1 of 2 file(s) missing" in answer.error
    assert "  b.bin: missing (20,000 bytes)\n" in answer.error
    assert "offline mode is enabled" in answer.error
    assert f"/resolve/{'1' * 40}/<file>" in answer.error


@pytest.mark.parametrize("environment", [{}, OFFLINE])
def test_files_of_unknown_origin_are_used_when_there_is_no_hub(
    fetch, tmp_path, environment
):
    for name in SMALL:
        (tmp_path / name).write_bytes(b"mine")
    answer = fetch(NoHub(), tmp_path, SMALL, environment=environment)
    assert answer.paths
    assert answer.output.startswith(
        f"2 file(s) in {tmp_path} are used as they are, unverified: no record "
        f"of {REPO} is stored beside them. The Hub can't be reached"
    )
    assert answer.output.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "hf") == (
        SMALL
    )


def test_files_of_unknown_origin_are_not_kept_waiting_by_an_ill_hub(
    hub, fetch, tmp_path
):
    (tmp_path / "a.bin").write_bytes(b"mine")
    hub.faults["record"] = ["503"] * 9
    answer = fetch(hub, tmp_path, ["a.bin"])
    assert answer.paths and "503" in answer.output
    assert len(hub.asked("hub", "main")) == 1


def test_fetched_files_need_no_network(hub, fetch, tmp_path):
    fetch(hub, tmp_path / "data", SMALL)
    assert fetch(NoHub(), tmp_path / "data", SMALL).paths
    # Nor does verifying them, with the record of that time.
    os.utime(tmp_path / "data" / "a.bin")
    assert fetch(NoHub(), tmp_path / "data", SMALL).paths
    (tmp_path / "data" / "a.bin").write_bytes(b"broken")
    answer = fetch(NoHub(), tmp_path / "data", SMALL)
    assert "a.bin: 6 bytes instead of 10,000 (10,000 bytes)" in answer.error
    assert answer.stderr == ""
    assert (tmp_path / "data" / "a.bin").read_bytes() == b"broken"


def test_a_full_disk_is_noticed_before_the_download(hub, fetch, tmp_path):
    answer = fetch(hub, tmp_path / "data", SMALL, setup=(
        "import collections, shutil\n"
        "Usage = collections.namedtuple('Usage', 'total used free')\n"
        "shutil.disk_usage = lambda path: Usage(30_000, 1, 29_999)"
    ))
    assert (
        f"30,000 bytes have to be fetched, but {tmp_path / 'data'} has only "
        "29,999 bytes of free disk space."
    ) in answer.error
    assert hub.bytes_sent == 0


def test_a_disk_that_fills_up_keeps_what_was_received(hub, fetch, tmp_path):
    # The kernel's limit on the size of files stands for a full disk.
    answer = fetch(
        hub, tmp_path / "data", ["a.bin", "big.bin"],
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)
        ),
    )
    assert re.search(
        r"/big.bin can't be written to disk: \[Errno 27\] File too large. "
        "What has been received is kept", answer.error,
    )
    assert not (tmp_path / "data" / "big.bin").exists()
    assert fetch(hub, tmp_path / "data", ["a.bin", "big.bin"]).paths
    assert hub.asked("cdn", "big.bin")[-1].range == "bytes=2000000-"
    assert_complete(tmp_path / "data", ["a.bin", "big.bin"])


def drop_privileges():
    """Let the permissions of files count for root, too."""
    pr_capbset_drop, cap_dac_override = 24, 1
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


@pytest.fixture
def read_only(tmp_path):
    """A folder with both small files that can't be written."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name in SMALL:
        (folder / name).write_bytes(FILES[name])
    folder.chmod(0o555)
    is_writable = subprocess.run(
        [sys.executable, "-c", f"open({str(folder / 'test')!r}, 'w')"],
        preexec_fn=drop_privileges, stderr=subprocess.DEVNULL,
    ).returncode == 0
    if is_writable:
        pytest.skip("permissions of files don't count here")
    yield folder
    folder.chmod(0o755)


def test_a_folder_that_can_not_be_written_is_used(hub, fetch, read_only):
    options = {"preexec_fn": drop_privileges}
    answer = fetch(hub, read_only, SMALL, **options)
    assert answer.paths
    assert f"Verifying 2 file(s) in {read_only}\n" in answer.output
    assert sorted(p.name for p in read_only.iterdir()) == SMALL
    answer = fetch(NoHub(), read_only, SMALL, **options)
    assert answer.paths and "unverified" in answer.output
    answer = fetch(hub, read_only, [*SMALL, "big.bin"], **options)
    assert answer.error.startswith(
        f"OSError 1 of 3 file(s) missing or wrong in {read_only}:\n"
        f"  big.bin: missing"
    )
    assert "can't be written ([Errno 13] Permission denied" in answer.error
    (read_only / "a.bin").write_bytes(b"mine")
    answer = fetch(hub, read_only, SMALL, **options)
    assert "a.bin: 4 bytes instead of 10,000 (10,000 bytes)" in answer.error
    assert "HF_HUB_OFFLINE=1" in answer.error
    assert hub.bytes_sent == 0


def test_a_stamped_folder_that_can_not_be_written_is_not_read_again(
    hub, fetch, read_only
):
    assert fetch(hub, read_only, SMALL, preexec_fn=None).paths
    for path in [*(read_only / ".hub").iterdir(), read_only / ".hub"]:
        path.chmod(0o555)
    answer = fetch(
        NoHub(), read_only, SMALL, setup=NOT_READ,
        preexec_fn=drop_privileges,
    )
    assert answer.paths and answer.output == ""


def test_the_revision_is_honoured_and_stays(hub, fetch, tmp_path):
    other = {"a.bin": b"another version", "b.bin": FILES["b.bin"]}
    hub.revisions["v2/final"] = ("2" * 40, other)
    folder = tmp_path / "data"
    fetch(hub, folder, SMALL, revision="v2/final")
    assert_complete(folder, files=other)
    # Only what differs is fetched; what the Hub has is no loss.
    answer = fetch(hub, folder, SMALL)
    assert "rejected" not in answer.output
    assert_complete(folder)
    assert len(hub.asked("cdn", "b.bin")) == 1
    # A branch that moves is not followed unawares.
    hub.revisions["main"] = hub.revisions["v2/final"]
    assert fetch(hub, folder, SMALL).output == ""
    (folder / ".hub" / "owner--shards@main.json").unlink()
    assert fetch(hub, folder, SMALL).paths
    assert_complete(folder, files=other)


def test_an_unknown_revision_is_an_error(hub, fetch, tmp_path):
    (tmp_path / "a.bin").write_bytes(FILES["a.bin"])
    for names in [["a.bin"], SMALL]:
        answer = fetch(hub, tmp_path, names, revision="v9")
        assert answer.error == (
            "ValueError revision='v9' is no branch, tag or commit of the "
            f"dataset repository {REPO} on {hub.url}.\n"
        )


def test_an_unknown_file_is_an_error(hub, fetch, tmp_path):
    for name in ["c.bin", "README.md"]:
        answer = fetch(hub, tmp_path / "data", ["a.bin", name])
        assert answer.error.startswith(
            f"ValueError The dataset repository {REPO} at revision='main' "
            f"(commit {'1' * 40}) has no large file {name}."
        )
        assert hub.bytes_sent == 0


def test_an_unknown_repository_is_an_error(hub, fetch, tmp_path):
    hub.repo_id = "another/one"
    answer = fetch(hub, tmp_path / "data", SMALL)
    assert answer.error.startswith(
        f"OSError The Hub refuses the dataset repository {REPO} "
        "(RepositoryNotFoundError: 404"
    )


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_refusal_is_an_error(hub, fetch, tmp_path, status):
    # Even if the files are there: this is no lack of a network.
    (tmp_path / "a.bin").write_bytes(FILES["a.bin"])
    hub.faults["record"] = [status]
    answer = fetch(hub, tmp_path, ["a.bin"])
    assert f"The Hub refuses the dataset repository {REPO}" in answer.error
    assert status in answer.error and "HF_TOKEN" in answer.error


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(
    hub, fetch, tmp_path
):
    hub.token = "hf_secret"
    answer = fetch(hub, tmp_path / "data", SMALL)
    assert "(RepositoryNotFoundError: 401" in answer.error
    hub.requests.clear()
    assert fetch(
        hub, tmp_path / "data", SMALL, environment={"HF_TOKEN": "hf_secret"}
    ).paths
    for name, host in [("main", "hub"), ("a.bin", "hub")]:
        assert {r.authorization for r in hub.asked(host, name)} == {
            "Bearer hf_secret"
        }
    assert {r.authorization for r in hub.asked("cdn", "a.bin")} == {None}


def test_proxies_are_used_as_the_environment_says(hub, fetch, tmp_path):
    answer = fetch(hub, tmp_path / "data", SMALL, environment={
        "HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.url,
        "http_proxy": hub.url, "NO_PROXY": "localhost",
        "no_proxy": "localhost",
    })
    assert answer.paths
    assert hub.asked("hub", "main")[0].path.startswith("http://hub.invalid/")


# FineWeb


@pytest.mark.parametrize("num_train_shards", [0, -1, 104, 1.5, "x", True])
def test_fineweb_has_1_to_103_training_shards(bench, num_train_shards):
    with pytest.raises(ValueError, match=re.escape(
        f"FineWeb: num_train_shards={num_train_shards!r} must be a whole "
        "number from 1 to 103"
    )):
        fineweb(bench, num_train_shards=num_train_shards)


@pytest.mark.parametrize("revision", [1, None, ""])
def test_the_revision_of_fineweb_is_a_name(bench, revision):
    with pytest.raises(ValueError, match="FineWeb: revision=.* name of a"):
        fineweb(bench, revision=revision)


def fineweb(bench, **parameters):
    klass, = bench.check_dataset_patterns(["FineWeb"], class_only=True)
    return klass.get_instance(**parameters)


def test_fineweb_says_how_to_get_it_without_network(
    bench, tmp_path, monkeypatch
):
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path))
    with pytest.raises(OSError) as caught:
        fineweb(bench, num_train_shards=103).get_data()
    message = str(caught.value)
    for expected in [
        "104 of 104 file(s) missing", str(tmp_path / "fineweb10B"),
        "fineweb_val_000000.bin", "fineweb_train_000103.bin",
        "datasets/kjj0/fineweb10B-gpt2/resolve/main/", "200,001,024",
        "110,649,110", 'benchopt prepare . -d "FineWeb[num_train_'
        'shards=103]"', "BENCHOPT_DATA_HOME", "data_paths: {fineweb10B: ",
    ]:
        assert expected in message


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="real FineWeb tokens are not here"
)
def test_fineweb_uses_the_shards_of_a_shared_folder(
    bench, monkeypatch, capsys
):
    folder = SHARED_DATA / "fineweb10B"
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(SHARED_DATA))
    data = fineweb(bench, num_train_shards=2).get_data()
    assert data["train"].num_tokens == 200_000
    assert data["val"].num_tokens == 100_000
    data["train"].check_token_ids()
    assert "3 file(s)" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before


def test_benchopt_prepares_as_many_shards_as_asked_for(tmp_path):
    files = {}
    for number in range(4):
        kind = "train" if number else "val"
        path = tmp_path / f"fineweb_{kind}_{number:06d}.bin"
        write_shard(path, [np.arange(number + 1)])
        files[path.name] = path.read_bytes()
    names = list(files)
    folder = tmp_path / "home" / "fineweb10B"
    code = f"""
import os
from benchopt.cli import benchopt
for _ in range(2):
    benchopt([
        "prepare", {str(ROOT)!r}, "-d",
        "FineWeb[num_train_shards=2]"
    ], standalone_mode=False)
    os.rename({str(folder / names[1])!r}, {str(tmp_path / "moved")!r})
"""
    with FakeHub(files, "kjj0/fineweb10B-gpt2") as hub:
        subprocess.run(
            [sys.executable, "-c", code], check=True,
            env=os.environ | hub.environment | {
                "BENCHOPT_CACHE": str(tmp_path / "cache"),
                "BENCHOPT_DATA_HOME": str(folder.parent),
                "HF_HOME": str(tmp_path / "hf"),
            },
        )
        assert [len(hub.asked("cdn", n)) for n in names] == [1, 2, 1, 0]
    os.rename(tmp_path / "moved", folder / names[1])
    assert_complete(folder, sorted(names[:3]), files)


def test_fineweb_is_a_language_model_problem(bench, tmp_path, monkeypatch):
    for number in range(4):
        kind = "train" if number else "val"
        write_shard(
            tmp_path / "fineweb10B" / f"fineweb_{kind}_{number:06d}.bin",
            [np.full(10, number)],
        )
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path))
    data = fineweb(bench, num_train_shards=2, repeat=True).get_data()
    assert [tokens[0] for tokens in data["train"].arrays] == [1, 2]
    assert [tokens[0] for tokens in data["val"].arrays] == [0]
    assert data["train"].vocab_size == data["val"].vocab_size == 50257
    assert (data["target"], data["entropy"], data["repeat"]) == (
        3.28, None, True
    )


def test_a_broken_shard_of_unknown_origin_is_refused(
    bench, tmp_path, monkeypatch
):
    folder = tmp_path / "fineweb10B"
    write_shard(folder / "fineweb_val_000000.bin", [np.arange(9)])
    (folder / "fineweb_train_000001.bin").write_bytes(b"cut off")
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="fineweb_train_000001.bin has 7"):
        fineweb(bench, num_train_shards=1).get_data()
