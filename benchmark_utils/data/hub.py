"""Verified downloads: files of a Hugging Face dataset repository in a folder.

huggingface_hub transfers the files one after the other (hf_xet reads each in
parallel) into a temporary folder. A file gets its name once its size and
SHA-256 match the Hub's record; its checksum is cached (``checksums.py``), and
it is neither read nor requested again.

``snapshot_download(local_dir=...)`` of huggingface_hub 2.4, tried against a
faulty local Hub, accepts a file with one wrong byte, deletes a foreign file of
the same name before the download, and trusts a replaced file with an older
modification time. It fails where the file system refuses locks, and without a
network it uses a wrong file as it is.
"""
import contextlib
import functools
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from benchmark_utils.data import checksums

# Seconds to wait before each retry of a transient failure.
RETRY_WAITS = (1, 4, 16)
# Seconds without a write after which an unfinished download is removed.
ABANDONED_AFTER = 3600


class HubUnavailable(OSError):
    """The Hub can't be reached, or fails for the moment."""


def fetch_shards(repo_id, filenames, folder, revision="main"):
    """Download the missing files of a dataset repository; verify all.

    Several processes may call it at once. After a kill, complete files stay
    and an unfinished one starts again. A file that differs from the Hub's may
    be somebody's own work: it is renamed to ``<file>.rejected-<number>``.
    With neither a record nor a network, files are used as they are.

    Parameters
    ----------
    repo_id : str
        Dataset repository on the Hub, "owner/name".
    filenames : list of str
        Files at the root of the repository, stored with LFS or Xet: the Hub
        has no SHA-256 of others.
    folder : str or Path
        Created if needed; may be read-only if it holds the files.
    revision : str
        Branch, tag or commit of the repository.

    Returns
    -------
    paths : list of Path
        One per file, in the same order.

    Raises
    ------
    ValueError
        If the repository has no such revision or file.
    OSError
        If there is no network or the content is wrong again and again
        (``HubUnavailable``), the Hub refuses, the disk is full, or the folder
        can't be written.
    """
    mirror = _Mirror(repo_id, filenames, folder, revision)
    try:
        mirror.complete()
    except HubUnavailable as error:
        missing = mirror.missing()
        if mirror.record or missing:
            names = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
            raise HubUnavailable(
                f"{error} {mirror.folder} lacks {len(missing)} of "
                f"{len(filenames)} file(s) ({names}). Where the Hub can be "
                f"reached, fetch {mirror.url('')}<file> into this folder."
            ) from None
        print(
            f"{len(filenames)} file(s) in {mirror.folder} are used as they "
            f"are, unverified: {mirror.cache} has no record of {repo_id}. "
            f"{error}"
        )
    return [mirror.folder / name for name in filenames]


def shard_versions(repo_id, filenames, folder, revision="main"):
    """Identify the content of each file without reading it.

    Returns
    -------
    versions : list
        Per file, the SHA-256 on record (``fetch_shards`` accepts no other
        content), or size and modification time without a record. None if the
        file is missing or its size is not the one on record.
    """
    mirror = _Mirror(repo_id, filenames, folder, revision)

    def version(path):
        if not path.exists():
            return None
        info = path.stat()
        if mirror.record is None:
            return info.st_size, info.st_mtime_ns
        file = mirror.record["files"].get(path.name, {"size": None})
        return file["sha256"] if file["size"] == info.st_size else None

    return [version(mirror.folder / name) for name in filenames]


class _Mirror:
    """Local copies of some files of a repository at a revision."""

    def __init__(self, repo_id, names, folder, revision):
        self.repo_id, self.names, self.revision = repo_id, names, revision
        self.folder = Path(folder)
        self.cache = checksums.cache_folder(self.folder)
        self.record_path = self.cache / (
            f"{repo_id.replace('/', '--')}@{quote(revision, safe='')}.json"
        )
        self.record = checksums.read_record(self.record_path)

    def missing(self):
        return [n for n in self.names if not (self.folder / n).exists()]

    def complete(self):
        """Verify files without a cached checksum, fetch missing ones."""
        self.record = self.record or self._ask_record()
        if not self._unverified():
            return
        # In a read-only folder, files are verified each time.
        with contextlib.suppress(OSError):
            self.cache.mkdir(parents=True, exist_ok=True)
        with _turn(self.cache / "lock") as has_locks:
            # Another process may have done everything in the meantime.
            stored = checksums.read_record(self.record_path)
            self.record = stored or checksums.write_record(
                self.record_path, self.record
            )
            for name in self._unverified():
                if os.path.lexists(self.folder / name):
                    self._check(name)
            if missing := self.missing():
                self.cache.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned()
                self._fetch_all(missing, has_locks)

    def _check(self, name):
        """Verify a file; rename it if it is wrong."""
        path = self.folder / name
        print(f"Verifying {path}")
        expected = self.record["files"][name]
        if problem := checksums.verify(path, path, **expected):
            aside = f"{path}.rejected-{secrets.token_hex(2)}"
            print(f"{path} is refused: it has {problem}")
            path.rename(aside)
            print(f"It is kept as {aside}")

    def _fetch_all(self, names, has_locks):
        sizes = [self.record["files"][name]["size"] for name in names]
        need = f"{len(names)} file(s), {sum(sizes):,} bytes"
        if sum(sizes) > (free := shutil.disk_usage(self.folder).free):
            raise OSError(f"{self.folder} has {free:,} bytes of disk space "
                          f"left, too few for {need}.")
        print(f"Fetching {need}, from {self.url('')} to {self.folder}")
        for number, name in enumerate(names, 1):
            _ask(self.url(name), functools.partial(
                self._fetch, name, has_locks
            ))
            print(f"{name} is verified: {number} of {len(names)}, "
                  f"{sum(sizes[number:]):,} bytes to go", flush=True)

    def url(self, name):
        revision = self.record["commit"] if self.record else self.revision
        return hf_hub_url(
            self.repo_id, name, repo_type="dataset", revision=revision
        )

    def _unverified(self):
        files = self.record["files"]
        if unknown := set(self.names).difference(files):
            raise ValueError(
                f"The dataset repository {self.repo_id} at revision="
                f"{self.revision!r} (commit {self.record['commit']}) has no "
                f"file {min(unknown)} with a SHA-256 on record. If it has one "
                f"by now, delete {self.record_path}."
            )
        return [
            name for name in self.names
            if files[name]["sha256"] != checksums.cached_hash(
                self.folder / name
            )
        ]

    def _fetch(self, name, has_locks):
        """Download and verify one file, then give it its name."""
        path = self.folder / name
        with tempfile.TemporaryDirectory(
            prefix="incoming-", dir=self.cache, ignore_cleanup_errors=True
        ) as own, tempfile.TemporaryDirectory() as elsewhere:
            # huggingface_hub locks files inside local_dir, and fails where
            # the file system refuses locks.
            received = hf_hub_download(
                self.repo_id, name, repo_type="dataset",
                revision=self.record["commit"], cache_dir=own,
                local_dir=own if has_locks else elsewhere,
            )
            part = shutil.move(received, Path(own) / "part")
            file = self.record["files"][name]
            if problem := checksums.verify(part, path, **file):
                raise OSError(
                    f"{problem}; something on the way changes it, or "
                    f"{self.record_path} was edited: delete it then"
                )
            os.replace(part, path)

    def _ask_record(self):
        try:
            info = _ask(
                f"the dataset repository {self.repo_id}",
                lambda: HfApi().dataset_info(
                    self.repo_id, revision=self.revision, files_metadata=True,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                ),
                # If all files are present, don't retry.
                is_patient=bool(self.missing()),
            )
        except RevisionNotFoundError:
            raise ValueError(
                f"revision={self.revision!r} is not a branch, tag or commit "
                f"of the dataset repository {self.repo_id} on "
                f"{constants.ENDPOINT}."
            ) from None
        return {"commit": info.sha, "files": {
            file.rfilename: dict(size=file.lfs.size, sha256=file.lfs.sha256)
            for file in info.siblings if file.lfs and file.lfs.sha256
        }}

    def _remove_abandoned(self):
        """Remove the unfinished downloads of killed processes."""
        for own in self.cache.glob("incoming-*"):
            with contextlib.suppress(OSError):
                newest = max(p.stat().st_mtime for p in [own, *own.rglob("*")])
                if newest < time.time() - ABANDONED_AFTER:
                    shutil.rmtree(own)


@contextlib.contextmanager
def _turn(path):
    """Let processes that share a folder take turns, to avoid double work;
    yield whether the file system has locks."""
    lock, has_locks = FileLock(path, mode=0o664), True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process at work in {path.parent.parent}")
        lock.acquire()
    except OSError:
        has_locks = False
    try:
        yield has_locks
    finally:
        lock.release()


def _ask(what, request, is_patient=True):
    """Return the Hub's answer, retrying after transient failures.

    Raises ``RevisionNotFoundError``, ``HubUnavailable``, or another OSError
    if the Hub refuses or the disk can't be written.
    """
    for wait in (*(RETRY_WAITS if is_patient else ()), None):
        try:
            return request()
        except RevisionNotFoundError:
            raise
        # The errors of the transports have no common base class.
        except Exception as error:
            # huggingface_hub raises it after its own retries, from the cause.
            is_final = isinstance(error, LocalEntryNotFoundError)
            cause = is_final and error.__cause__ or error
            summary = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
            response = getattr(cause, "response", None)
            status = getattr(response, "status_code", 500)
            if status < 500 and status not in (408, 416, 429):
                raise OSError(
                    f"The Hub refuses {what} ({summary}). Check the name; if "
                    "it is private or gated, log in with `hf auth login` or "
                    "set HF_TOKEN."
                ) from None
            is_network = isinstance(cause, (ConnectionError, TimeoutError))
            if getattr(cause, "errno", None) and not is_network:
                raise  # The disk failed, not the network.
            is_offline = isinstance(cause, OfflineModeIsEnabled)
            if wait is None or is_final or is_offline:
                raise HubUnavailable(
                    f"The Hub can't deliver {what} ({summary})."
                ) from None
        time.sleep(wait)
