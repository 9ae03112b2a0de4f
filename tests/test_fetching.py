"""Shards are downloaded once, verified once, and never lost.

Processes with huggingface_hub's own client meet a faulty Hub on loopback.
"""
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import resource
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

from fake_hub import FakeHub

ROOT = Path(__file__).parents[1]
REPO = "owner/shards"
FILES = {
    "a.bin": np.random.default_rng(1).bytes(10_000),
    "b.bin": np.random.default_rng(2).bytes(20_000),
    # huggingface_hub keeps pieces of 10 MiB of a connection that breaks.
    "big.bin": np.random.default_rng(3).bytes(12 * 2**20),
}
SMALL = ["a.bin", "b.bin"]
WITH_BIG = ["a.bin", "big.bin"]
# A client that would have to read a file fails.
NOT_READ = "checksums.sha_fileobj = None"
# Below the folder "data", locks do nothing or are refused.
FLOCK = """
import fcntl, os
flock = fcntl.flock
def faulty(descriptor, operation):
    if "/data/" not in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        return flock(descriptor, operation)
    {fault}
fcntl.flock = faulty
"""
CLIENT = """
import json, sys
from benchmark_utils.data import hub, checksums
hub.RETRY_WAITS = (0.1, 0.1, 0.1)
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
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def start(hub, folder, tmp_path):
    """Start clients; end those that are left."""
    clients = []

    def start(names, folder=folder, hub=hub, revision="main", setup="",
              environment=None, **options):
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
    """Let a client fetch files: fetch(names) -> Answer."""
    def fetch(*args, **kwargs):
        return answer_of(start(*args, **kwargs))

    return fetch


def answer_of(client):
    stdout, stderr = client.communicate(timeout=60)
    output, kind, rest = re.split(
        "^(PATHS|ERROR) ", stdout, maxsplit=1, flags=re.MULTILINE
    ) if client.returncode == 0 else (stdout, "", "")
    assert kind, stdout + (stderr or "")
    if kind == "PATHS":
        return Answer(json.loads(rest), None, output, stderr)
    return Answer(None, rest, output, stderr)


def assert_complete(folder, names=SMALL, files=FILES):
    """The folder holds these files, whole, and nothing half done."""
    for name in names:
        assert (folder / name).read_bytes() == files[name]
    assert sorted(p.name for p in folder.iterdir()) == [".hub", *names]
    assert {path.suffix for path in (folder / ".hub").iterdir()} <= {
        "", ".json", ".sha256"
    }
    assert not list(folder.glob(".hub/incoming-*"))


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def received_by(folder):
    """The bytes of unfinished downloads in a folder."""
    with contextlib.suppress(FileNotFoundError):  # one was removed just now
        return sum(
            path.stat().st_size for path in folder.glob(".hub/incoming-*/**/*")
            if path.suffix == ".incomplete"
        )
    return 0


def test_files_arrive_whole(hub, fetch, tmp_path):
    folder = tmp_path / "not" / "there"
    answer = fetch(SMALL, folder=folder)
    assert answer.paths == [str(folder / name) for name in SMALL]
    assert_complete(folder)
    assert answer.stderr == ""
    assert answer.output == (
        f"Fetching 2 file(s), 30,000 bytes, from {hub.url}/datasets/{REPO}/"
        f"resolve/{'1' * 40}/ to {folder}\n"
        "a.bin is verified: 1 of 2, 20,000 bytes to go\n"
        "b.bin is verified: 2 of 2, 0 bytes to go\n"
    )


def test_a_person_sees_how_far_a_file_is(start):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    client = start(["a.bin"], stderr=theirs)
    assert answer_of(client).paths
    os.close(theirs)
    screen = ""
    with contextlib.suppress(OSError):  # all has been read
        while True:
            screen += os.read(ours, 10_000).decode()
    os.close(ours)
    assert re.search(r"a\.bin: +100%.*10\.0k", screen)


def test_verified_files_are_neither_asked_for_nor_read(hub, fetch, folder):
    fetch(["a.bin"])
    fetch(SMALL)
    assert_complete(folder)
    assert len(hub.asked("hub", "main")) == 1, "the record is taken once"
    hub.requests.clear()
    answer = fetch(SMALL, setup=NOT_READ)
    assert answer.paths and answer.output == ""
    assert hub.requests == []


def test_files_placed_by_hand_are_verified_once_and_kept(hub, fetch, tmp_path):
    for name in SMALL:
        (tmp_path / name).write_bytes(FILES[name])
    answer = fetch(SMALL, folder=tmp_path)
    assert answer.output == "".join(
        f"Verifying {tmp_path / name}\n" for name in SMALL
    )
    assert hub.bytes_sent == 0
    assert fetch(SMALL, folder=tmp_path, setup=NOT_READ).paths


def test_a_file_that_was_touched_is_verified_again(fetch, folder):
    fetch(SMALL)
    os.utime(folder / "a.bin")
    answer = fetch(SMALL, hub=NoHub())
    assert answer.output == f"Verifying {folder / 'a.bin'}\n"


@pytest.mark.parametrize("wrong", ["cut", "other", "folder", "pipe", "link"])
@pytest.mark.parametrize("verified", [True, False])
def test_only_a_wrong_file_is_fetched_and_what_it_was_is_kept(
        hub, fetch, folder, tmp_path, wrong, verified):
    if verified:
        fetch(SMALL)
        hub.requests.clear()
    else:
        folder.mkdir()
        (folder / "b.bin").write_bytes(FILES["b.bin"])
    path = folder / "a.bin"
    path.unlink(missing_ok=True)
    if wrong == "folder":
        path.mkdir()
        (path / "mine").write_bytes(b"mine")
    elif wrong == "pipe":
        os.mkfifo(path)
    elif wrong == "link":
        mine = b"mine"
        (tmp_path / "mine").write_bytes(mine)
        path.symlink_to(tmp_path / "mine")
    else:
        mine = FILES["a.bin"][:500] if wrong == "cut" else bytes(10_000)
        path.write_bytes(mine)
    answer = fetch(SMALL)
    problem = {
        "cut": "500 bytes instead of 10,000",
        "other": "SHA-256 95b532cc4381affdff0d956e12520a04129ed49d37e154228368"
                 "fe5621f0b9a2 instead of",
        "link": "4 bytes instead of 10,000",
    }.get(wrong, "no content, since it is not a file")
    assert f"{path} is refused: it has {problem}" in answer.output
    assert not hub.asked("cdn", "b.bin")
    rejected, = folder.glob("a.bin.rejected-*")
    assert f"It is kept as {rejected}\n" in answer.output
    if wrong == "folder":
        assert (rejected / "mine").read_bytes() == b"mine"
    elif wrong == "pipe":
        assert rejected.is_fifo()
    else:
        assert rejected.read_bytes() == mine
    rejected.rename(tmp_path / "elsewhere")
    assert_complete(folder)


@pytest.mark.parametrize("key, faults", [
    ("big.bin", faults) for faults in [
        ["500", "502", "503"], ["429"], ["416"], ["cut 11000000"],
        ["reset 11000000"], ["cut 100"], ["stall"], ["wrong"],
        ["longer 5000000"], ["cut 11000000", "whole"],
        ["504", "reset 10", "wrong"],
    ]
] + [("record", [fault]) for fault in ["429", "500", "503", "html"]])
def test_faults_that_pass_are_survived(hub, fetch, folder, key, faults):
    hub.faults[key] = list(faults)
    answer = fetch(["big.bin"])
    assert answer.error is None
    assert hub.faults[key] == []
    assert_complete(folder, ["big.bin"])
    if faults == ["cut 11000000"]:
        assert [request.range for request in hub.asked("cdn", "big.bin")] == [
            None, f"bytes={10 * 2**20}-"
        ]


def test_a_server_without_ranges_is_asked_for_the_whole_file(
        hub, fetch, folder):
    hub.has_ranges = False
    hub.faults["big.bin"] = ["cut 11000000"]
    assert fetch(["big.bin"]).paths
    assert_complete(folder, ["big.bin"])


@pytest.mark.parametrize("fault, problem", [
    ("wrong", r"SHA-256 \w{64} instead of \w{64}"),
    ("longer 9", "Consistency check failed: file should be of size 10000"),
    ("503", "503"),
])
def test_what_never_passes_is_an_error_and_leaves_nothing(
        hub, fetch, folder, fault, problem):
    hub.faults["a.bin"] = [fault] * 99
    answer = fetch(SMALL)
    assert re.search(
        rf"HubUnavailable The Hub can't deliver \S+/a\.bin \(.*{problem}",
        answer.error,
    )
    assert f"{folder} lacks 2 of 2 file(s) (a.bin, b.bin)" in answer.error
    assert_complete(folder, [])


def test_a_record_with_another_hash_is_named(hub, fetch, folder):
    """Edited by hand: the Hub's own content is never right."""
    fetch(["b.bin"])
    record = folder / ".hub" / "owner--shards@main.json"
    text = record.read_text()
    files = json.loads(text)["files"]
    record.write_text(text.replace(files["a.bin"]["sha256"], "0" * 64))
    answer = fetch(SMALL)
    assert re.search(
        rf"SHA-256 \w+ instead of 0+; .* or {record} was edited", answer.error
    )
    assert_complete(folder, ["b.bin"])


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"commit": "abc", "files": {}}',
    '{"commit": "%s", "files": {"a.bin": {"size": 1, "sha256": null}}}',
    '{"commit": "%s", "files": {"a.bin": {"size": "1", "sha256": "%s"}}}',
])
def test_a_damaged_record_is_taken_again(hub, fetch, folder, text):
    fetch(SMALL)
    record = folder / ".hub" / "owner--shards@main.json"
    before = record.read_text()
    record.write_text(text.replace("%s", "1" * 40))
    answer = fetch(SMALL)
    assert answer.paths
    assert f"{record} is damaged: the Hub is asked again." in answer.output
    assert_complete(folder)
    # Files that were verified need no record, until one changes.
    os.utime(folder / "a.bin")
    assert fetch(SMALL).paths
    assert record.read_text() == before


def test_killed_in_mid_download_it_keeps_what_is_complete(
        hub, start, fetch, folder):
    hub.faults["big.bin"] = ["slow 5000000"]
    client = start(WITH_BIG)
    wait_until(lambda: len(hub.asked("cdn", "big.bin")))
    wait_until(lambda: received_by(folder) > 0)
    os.kill(client.pid, signal.SIGKILL)
    assert client.wait() == -signal.SIGKILL
    assert not (folder / "big.bin").exists()
    left, = folder.glob(".hub/incoming-*")
    # It stays while it might be another process's ...
    assert fetch(WITH_BIG).paths
    assert left.exists()
    # ... and is removed when nobody has written to it for an hour.
    for path in [left, *left.rglob("*")]:
        os.utime(path, (time.time() - 4000,) * 2)
    assert fetch([*SMALL, "big.bin"]).paths
    assert_complete(folder, [*SMALL, "big.bin"])
    assert len(hub.asked("cdn", "a.bin")) == 1


def test_interrupted_it_ends_at_once_and_leaves_nothing(hub, start, folder):
    hub.faults["big.bin"] = ["slow 500000"]
    # The suite may run in the background, where SIGINT is ignored.
    client = start(["big.bin"], preexec_fn=lambda: signal.signal(
        signal.SIGINT, signal.default_int_handler
    ))
    wait_until(lambda: len(hub.asked("cdn", "big.bin")))
    time.sleep(0.3)
    os.kill(client.pid, signal.SIGINT)
    client.communicate(timeout=10)
    assert_complete(folder, [])


def test_four_processes_download_once(hub, start, folder):
    hub.faults["big.bin"] = ["slow 8000000"]
    clients = [start(WITH_BIG) for _ in range(4)]
    answers = [answer_of(client) for client in clients]
    assert all(answer.paths for answer in answers)
    assert any("Waiting for another" in answer.output for answer in answers)
    assert_complete(folder, WITH_BIG)
    assert len(hub.asked("cdn", "a.bin")) == 1
    assert len(hub.asked("cdn", "big.bin")) == 1


def test_a_waiting_process_takes_over_from_a_killed_one(hub, start, folder):
    hub.faults["big.bin"] = ["slow 2000000"]
    first = start(WITH_BIG)
    wait_until(lambda: hub.asked("cdn", "big.bin"))
    second = start(WITH_BIG)
    assert second.stdout.readline() == (
        f"Waiting for another process at work in {folder}\n"
    )
    first.kill()
    first.wait()
    assert answer_of(second).paths
    assert (folder / "big.bin").read_bytes() == FILES["big.bin"]
    assert len(hub.asked("cdn", "a.bin")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("fault", [
    "return", "raise OSError(37, 'No locks available')",
    "raise OSError(95, 'Operation not supported')",
])
def test_downloads_are_right_without_locks(hub, start, folder, fault):
    """Each process then downloads to files of its own."""
    hub.faults["big.bin"] = ["slow 12000000"] * 3
    setup = FLOCK.format(fault=fault)
    clients = [start(WITH_BIG, setup=setup) for _ in range(3)]
    for client in clients:
        assert answer_of(client).paths
    assert_complete(folder, WITH_BIG)
    assert len(hub.asked("cdn", "big.bin")) <= 3


class NoHub:
    """An address where nobody answers."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.environment = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}


OFFLINE = {"HF_HUB_OFFLINE": "1"}
# A client that tries again does not end before the test's timeout.
NO_RETRY = "hub.RETRY_WAITS = (99, 99, 99)"


def test_without_a_hub_the_error_says_what_from_where_and_how(
        fetch, tmp_path):
    nobody = NoHub()
    answer = fetch(SMALL, folder=tmp_path, hub=nobody)
    assert re.sub(r"\(Connect.* refused.*?\)", "(...)", answer.error) == (
        f"HubUnavailable The Hub can't deliver the dataset repository {REPO} "
        f"(...). {tmp_path} lacks 2 of 2 file(s) (a.bin, b.bin). "
        f"Where the Hub can be reached, fetch {nobody.url}/datasets/{REPO}/"
        "resolve/main/<file> into this folder.\n"
    )
    # With the record of an earlier time.
    fetch(["a.bin"], folder=tmp_path)
    answer = fetch(
        SMALL, tmp_path, nobody, environment=OFFLINE, setup=NO_RETRY
    )
    assert "lacks 1 of 2 file(s) (b.bin)" in answer.error
    assert "offline mode is enabled" in answer.error
    assert f"/resolve/{'1' * 40}/<file>" in answer.error


@pytest.mark.parametrize("environment", [{}, OFFLINE])
def test_files_of_unknown_origin_are_used_when_there_is_no_hub(
        fetch, tmp_path, environment):
    for name in SMALL:
        (tmp_path / name).write_bytes(b"mine")
    answer = fetch(
        SMALL, tmp_path, NoHub(), environment=environment, setup=NO_RETRY
    )
    assert answer.paths
    assert answer.output.startswith(
        f"2 file(s) in {tmp_path} are used as they are, unverified: "
        f"{tmp_path / '.hub'} has no record of {REPO}. The Hub can't deliver"
    )
    assert answer.output.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "hf") == (
        SMALL
    )


def test_fetched_files_need_no_network(fetch, folder):
    fetch(SMALL)
    assert fetch(SMALL, hub=NoHub()).paths
    (folder / "a.bin").write_bytes(b"broken")
    answer = fetch(SMALL, hub=NoHub(), environment=OFFLINE)
    assert "refused: it has 6 bytes instead of 10,000\nIt" in answer.output
    assert "lacks 1 of 2 file(s) (a.bin)" in answer.error
    kept, = folder.glob("a.bin.rejected-*")
    assert kept.read_bytes() == b"broken"


def test_a_full_disk_is_noticed_before_the_download(hub, fetch, folder):
    answer = fetch(SMALL, setup=(
        "import collections, shutil\n"
        "Usage = collections.namedtuple('Usage', 'total used free')\n"
        "shutil.disk_usage = lambda path: Usage(30_000, 1, 29_999)"
    ))
    assert (
        f"{folder} has 29,999 bytes of disk space left, too few "
        "for 2 file(s), 30,000 bytes."
    ) in answer.error
    assert hub.bytes_sent == 0


def test_a_disk_that_fills_up_keeps_what_is_complete(hub, fetch, folder):
    # The kernel's limit on the size of files stands for a full disk.
    answer = fetch(WITH_BIG, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)
    ))
    assert "OSError [Errno 27] File too large" in answer.error
    assert_complete(folder, ["a.bin"])
    assert fetch(WITH_BIG).paths
    assert_complete(folder, WITH_BIG)
    assert len(hub.asked("cdn", "a.bin")) == 1


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
    answer = fetch(SMALL, folder=read_only, **options)
    assert answer.paths
    assert f"Verifying {read_only / 'a.bin'}\n" in answer.output
    assert sorted(p.name for p in read_only.iterdir()) == SMALL
    answer = fetch(SMALL, folder=read_only, hub=NoHub(), **options)
    assert answer.paths and "unverified" in answer.output
    answer = fetch([*SMALL, "big.bin"], folder=read_only, **options)
    assert re.search(rf"Permission denied: '{read_only}/", answer.error)
    (read_only / "a.bin").write_bytes(b"mine")
    answer = fetch(SMALL, folder=read_only, **options)
    assert "refused: it has 4 bytes instead of 10,000" in answer.output
    assert "Permission denied" in answer.error
    assert "kept" not in answer.output
    assert (read_only / "a.bin").read_bytes() == b"mine"
    assert hub.bytes_sent == 0


def test_a_verified_folder_that_can_not_be_written_is_not_read_again(
        fetch, read_only):
    read_only.chmod(0o755)
    assert fetch(SMALL, folder=read_only).paths
    read_only.chmod(0o555)
    for path in [*(read_only / ".hub").iterdir(), read_only / ".hub"]:
        path.chmod(0o555)
    answer = fetch(
        SMALL, read_only, NoHub(), setup=NOT_READ, preexec_fn=drop_privileges
    )
    assert answer.paths and answer.output == ""


def test_the_revision_is_honoured_and_stays(hub, fetch, folder):
    other = {"a.bin": b"another version", "b.bin": FILES["b.bin"]}
    hub.revisions["v2/final"] = ("2" * 40, other)
    fetch(SMALL, revision="v2/final")
    assert_complete(folder, files=other)
    # Only what differs is fetched.
    assert fetch(SMALL).paths
    assert (folder / "a.bin").read_bytes() == FILES["a.bin"]
    assert len(hub.asked("cdn", "b.bin")) == 1
    # A branch that moves is not followed unawares.
    hub.revisions["main"] = hub.revisions["v2/final"]
    assert fetch(SMALL).output == ""
    (folder / ".hub" / "owner--shards@main.json").unlink()
    assert fetch(SMALL).paths
    assert (folder / "a.bin").read_bytes() == other["a.bin"]


def test_an_unknown_revision_is_an_error(hub, fetch, tmp_path):
    (tmp_path / "a.bin").write_bytes(FILES["a.bin"])
    for names in [["a.bin"], SMALL]:
        answer = fetch(names, folder=tmp_path, revision="v9")
        assert answer.error == (
            "ValueError revision='v9' is not a branch, tag or commit of the "
            f"dataset repository {REPO} on {hub.url}.\n"
        )


def test_an_unknown_file_is_an_error(hub, fetch):
    hub.hashes["b.bin"] = None
    for name in ["c.bin", "README.md", "b.bin"]:
        answer = fetch(["a.bin", name])
        assert answer.error.startswith(
            f"ValueError The dataset repository {REPO} at revision='main' "
            f"(commit {'1' * 40}) has no file {name} with a SHA-256 on record"
        )
        assert hub.bytes_sent == 0


def test_an_unknown_repository_is_an_error(hub, fetch):
    hub.repo_id = "another/one"
    answer = fetch(SMALL)
    assert answer.error.startswith(
        f"OSError The Hub refuses the dataset repository {REPO} "
        "(RepositoryNotFoundError: 404"
    )


@pytest.mark.parametrize("key", ["record", "a.bin"])
@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_refusal_is_an_error_at_once(hub, fetch, tmp_path, key, status):
    hub.faults[key] = [status]
    answer = fetch(["a.bin"], folder=tmp_path)
    assert "OSError The Hub refuses" in answer.error
    assert status in answer.error and "HF_TOKEN" in answer.error
    # Even if the files are there: this is no lack of a network.
    (tmp_path / "a.bin").write_bytes(FILES["a.bin"])
    hub.faults["record"] = [status]
    if key == "record":
        assert "The Hub refuses" in fetch(["a.bin"], folder=tmp_path).error


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(hub, fetch):
    hub.token = "hf_secret"
    answer = fetch(SMALL)
    assert "(RepositoryNotFoundError: 401" in answer.error
    hub.requests.clear()
    assert fetch(SMALL, environment={"HF_TOKEN": "hf_secret"}).paths
    for name, host in [("main", "hub"), ("a.bin", "hub")]:
        assert {r.authorization for r in hub.asked(host, name)} == {
            "Bearer hf_secret"
        }
    assert {r.authorization for r in hub.asked("cdn", "a.bin")} == {None}


def test_proxies_are_used_as_the_environment_says(hub, fetch):
    answer = fetch(SMALL, environment={
        "HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.url,
        "http_proxy": hub.url, "NO_PROXY": "localhost",
        "no_proxy": "localhost",
    })
    assert answer.paths
    assert hub.asked("hub", "main")[0].path.startswith("http://hub.invalid/")


# Each test starts processes: only the main promises are for the fast suite.
FAST = {
    test_files_arrive_whole, test_fetched_files_need_no_network,
    test_verified_files_are_neither_asked_for_nor_read,
}
for name, value in list(globals().items()):
    if name.startswith("test_") and value not in FAST:
        pytest.mark.slow(value)
