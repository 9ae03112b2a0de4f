"""Verified downloads: files of a Hugging Face dataset repository in a folder.

``fetch_shards`` makes a folder hold certain files of a repository, each with
the size and the SHA-256 that the Hub has on record. huggingface_hub transfers
them, one after the other (hf_xet reads each in parallel), into a folder of
this process's own; a file gets its name when it is complete and verified.

A verified file is noted beside the files (``checksums.py``), and is then
neither read nor requested again.
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

# Seconds to wait before each new attempt, where the trouble may pass.
RETRY_WAITS = (1, 4, 16)
# An unfinished download is abandoned after so many seconds without a write.
ABANDONED_AFTER = 3600


class HubUnavailable(OSError):
    """The Hub can't be reached, or can't deliver for the moment."""


def fetch_shards(repo_id, filenames, folder, revision="main"):
    """Make a folder hold verified files of a dataset repository.

    May be called by several processes at once, and again after a kill: files
    that are complete stay, one that was under way starts again. A file that
    is there and not the Hub's may be somebody's own work: it is renamed to
    ``<file>.rejected-<number>``. With neither a record nor a network, files
    are used as they are.

    Parameters
    ----------
    repo_id : str
        Dataset repository on the Hub, "owner/name".
    filenames : list of str
        Files at the root of the repository, large ones (stored with LFS or
        Xet): the Hub has no SHA-256 of the others.
    folder : str or Path
        Created if needed. May be read-only when it holds the files.
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
        If files can't be fetched: no network or wrong content again and again
        (``HubUnavailable``), a refusal by the Hub, a full disk, a folder that
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
            f"are, unverified: no record of {repo_id} is beside them. {error}"
        )
    return [mirror.folder / name for name in filenames]


def shard_versions(repo_id, filenames, folder, revision="main"):
    """Identity of the content of each file, found without reading it.

    Returns
    -------
    versions : list
        Per file the SHA-256 on record, whatever its modification time:
        ``fetch_shards`` lets no other content pass. Without a record, size
        and modification time. None for a file that is missing or has another
        size than the one on record.
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
    """Some files of a repository at a revision, in a folder."""

    def __init__(self, repo_id, names, folder, revision):
        self.repo_id, self.names, self.revision = repo_id, names, revision
        self.folder = Path(folder)
        self.notes = checksums.cache_folder(self.folder)
        self.record_path = self.notes / (
            f"{repo_id.replace('/', '--')}@{quote(revision, safe='')}.json"
        )
        self.record = checksums.read_record(self.record_path)

    def missing(self):
        return [n for n in self.names if not (self.folder / n).exists()]

    def complete(self):
        """Verify the files without a stamp, and fetch those not there."""
        self.record = self.record or self._ask_record()
        if not self._unverified():
            return
        # Where it can't be written, files are verified each time.
        with contextlib.suppress(OSError):
            self.notes.mkdir(parents=True, exist_ok=True)
        with _turn(self.notes / "lock") as has_locks:
            # Another process may have done it all while this one waited.
            stored = checksums.read_record(self.record_path)
            self.record = stored or checksums.write_record(
                self.record_path, self.record
            )
            for name in self._unverified():
                if os.path.lexists(self.folder / name):
                    self._check(name)
            if missing := self.missing():
                self.notes.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned()
                self._fetch_all(missing, has_locks)

    def _check(self, name):
        """Keep a file that is right, or put it aside."""
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
        """Receive one file, verify it, and put it in its place."""
        path = self.folder / name
        with tempfile.TemporaryDirectory(
            prefix="incoming-", dir=self.notes, ignore_cleanup_errors=True
        ) as own, tempfile.TemporaryDirectory() as elsewhere:
            # huggingface_hub locks files of its own, though nobody else knows
            # them, and fails where the file system refuses.
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
                # Whoever has the files doesn't wait for a Hub in trouble.
                is_patient=bool(self.missing()),
            )
        except RevisionNotFoundError:
            raise ValueError(
                f"revision={self.revision!r} is no branch, tag or commit of "
                f"the dataset repository {self.repo_id} on "
                f"{constants.ENDPOINT}."
            ) from None
        return {"commit": info.sha, "files": {
            file.rfilename: dict(size=file.lfs.size, sha256=file.lfs.sha256)
            for file in info.siblings if file.lfs and file.lfs.sha256
        }}

    def _remove_abandoned(self):
        """Remove what killed processes had received of a file."""
        for own in self.notes.glob("incoming-*"):
            with contextlib.suppress(OSError):
                newest = max(p.stat().st_mtime for p in [own, *own.rglob("*")])
                if newest < time.time() - ABANDONED_AFTER:
                    shutil.rmtree(own)


@contextlib.contextmanager
def _turn(path):
    """Let the processes that share a folder take turns, to spare double work;
    yield whether they can."""
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
    """The Hub's answer to a request, repeated after what may pass.

    Raises ``RevisionNotFoundError`` as it is, ``HubUnavailable``, and OSError
    for a refusal by the Hub or a disk that can't be written.
    """
    for wait in (*(RETRY_WAITS if is_patient else ()), None):
        try:
            return request()
        except RevisionNotFoundError:
            raise
        # The transports' errors have no common base.
        except Exception as error:
            # huggingface_hub raises this one after retries, from its reason.
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
                raise  # The disk can't be written; no network is to blame.
            is_offline = isinstance(cause, OfflineModeIsEnabled)
            if wait is None or is_final or is_offline:
                raise HubUnavailable(
                    f"The Hub can't deliver {what} ({summary})."
                ) from None
        time.sleep(wait)
