"""Verified downloads: files of a Hugging Face dataset repository in a folder.

``fetch_shards`` sees to it that a folder holds certain files of a repository
at a revision, each with the size and the SHA-256 that the Hub has on record.
What it knows lies in the folder ``.hub`` beside the files:

- ``<repository>@<revision>.json``, the Hub's record, taken once: the commit
  that the revision stood for, size and SHA-256 of every file. Delete it to
  follow a branch that has moved.
- ``<file>.stamp``, the SHA-256 that was found in the file, with the size and
  the modification time it had. While these stay the same, the file is never
  read again and no request is made.
- ``<file>.part``, a download under way, continued by whoever comes next. It
  gets its final name when it is complete and its hash is right.
- ``lock``, held while files are verified and fetched. The kernel frees it
  when its process dies.

A file that is in the folder, differs from the record and was never stamped
may be somebody's own work: it is not deleted but renamed to
``<file>.rejected``, once its replacement is there. With neither a record nor
a network, files that are in the folder are used as they are.

Addresses, transport, proxies, tokens, time-outs, offline mode and most of the
retries are huggingface_hub's. Only ``hf_hub_download`` isn't used: it deletes
what it received when it breaks off, and begins again.
"""
import contextlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm
from huggingface_hub.utils.sha import sha_fileobj

# Files fetched or read at once, as many as huggingface_hub's own downloads.
WORKERS = 8
# Seconds before each further attempt at what huggingface_hub gives up: server
# errors, and connections lost for longer than it waits. Any progress starts
# the list again.
RETRY_WAITS = (1, 2, 4)
# Times that a file is fetched which arrives complete but wrong.
MAX_FETCHES = 2
# The libraries below huggingface_hub, which has changed them over time; their
# errors have no common base.
TRANSPORTS = ("httpx2", "httpx", "requests", "urllib3")


class HubUnavailable(OSError):
    """Files are needed from the Hub, and it can't be reached."""


def fetch_shards(repo_id, filenames, folder, revision="main", advice=""):
    """Make a folder hold verified files of a dataset repository.

    May be called again, by several processes at once, and after a kill: what
    is verified is neither asked for nor read again, and what was received is
    not fetched again.

    Parameters
    ----------
    repo_id : str
        Dataset repository on the Hub, "owner/name".
    filenames : list of str
        Files at the root of the repository that are stored with a SHA-256,
        as all large ones are.
    folder : str or Path
        Created if needed. May be read-only when it holds the files.
    revision : str
        Branch, tag or commit of the repository.
    advice : str
        What else to do when files can't be had; ends the error's message.

    Returns
    -------
    paths : list of Path
        One per file, in the same order.

    Raises
    ------
    ValueError
        If the repository has no such revision or file.
    OSError
        If files are missing or wrong and can't be fetched: no network
        (``HubUnavailable``), a refusal by the Hub, wrong content sent again
        and again, not enough disk space, a folder that can't be written.
    """
    return _Mirror(repo_id, filenames, folder, revision, advice).fetch()


class _Mirror:
    """Some files of a repository at a revision, in a folder."""

    def __init__(self, repo_id, names, folder, revision, advice):
        self.repo_id = repo_id
        self.names = names
        self.revision = revision
        self.folder = Path(folder)
        self.advice = advice
        self.state = self.folder / ".hub"
        key = f"{repo_id.replace('/', '--')}@{quote(revision, safe='')}"
        self.record_path = self.state / f"{key}.json"
        self.record = self._read_record()
        self.problems = {}  # name -> what is wrong with the file

    def fetch(self):
        paths = [self.folder / name for name in self.names]
        if self.record is None and all(path.exists() for path in paths):
            # Asked before the folder is touched: it may be somebody else's.
            try:
                with self._explained():
                    self.record = self._ask_record()
            except HubUnavailable as error:
                print(
                    f"Using {len(paths)} files in {self.folder} unverified: "
                    f"{_summary(error.__cause__)}; no record of what "
                    f"{self.repo_id} holds is stored."
                )
                return paths
        if self._pending():
            with self._exclusive() as obstacle:
                self._complete(obstacle)
        return paths

    def _pending(self):
        """The names of files that aren't known to be right."""
        if self.record is None:
            return self.names
        unknown = set(self.names).difference(self.record["files"])
        if unknown:
            raise ValueError(
                f"The dataset repository {self.repo_id} has no file "
                f"{min(unknown)} with a SHA-256 at revision={self.revision!r}"
                f" (commit {self.record['commit']}). If it has one by now, "
                f"delete {self.record_path}."
            )
        return [name for name in self.names if not self._is_stamped(name)]

    def _complete(self, obstacle):
        """Verify what is there and fetch the rest.

        ``obstacle`` is the error why the folder can't be written, or None.
        """
        # Another process may have done it all while this one waited.
        self.record = self._read_record() or self.record
        if self.record is None and obstacle is None:
            with self._explained():
                self.record = _retried(self._ask_record)
        if self.record is not None:
            _write(self.record_path, json.dumps(self.record, indent=1))
            self._verify([
                name for name in self._pending()
                if os.path.lexists(self.folder / name)
            ])
        pending = [
            name for name in self._pending()
            if self.problems.setdefault(name, "missing")
        ]
        if pending and obstacle is not None:
            raise OSError(
                f"{self._listed(pending)}\nThey can't be fetched, because "
                f"{self.folder} can't be written: {obstacle}. Shards of your "
                "own are used as they are with HF_HUB_OFFLINE=1. "
                f"{self.advice}"
            )
        if pending:
            self._download(pending)

    # The Hub's record

    def _read_record(self):
        try:
            return json.loads(self.record_path.read_text())
        except (OSError, ValueError):
            return None

    def _ask_record(self):
        info = HfApi().dataset_info(
            self.repo_id, revision=self.revision, files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        return {"commit": info.sha, "files": {
            file.rfilename: {"size": file.lfs.size, "sha256": file.lfs.sha256}
            for file in info.siblings if file.lfs is not None
        }}

    # What is in the folder

    def _seal(self, name):
        """What a right file's stamp says."""
        info = os.stat(self.folder / name)
        sha256 = self.record["files"][name]["sha256"]
        return f"{sha256} {info.st_size} {info.st_mtime_ns}"

    def _is_stamped(self, name, same_content=True):
        """Whether the file is unchanged since it was verified, against this
        record or (with same_content=False) any record."""
        try:
            stamp = (self.state / f"{name}.stamp").read_text()
            start = 0 if same_content else 1
            return stamp.split()[start:] == self._seal(name).split()[start:]
        except (OSError, ValueError):
            return False

    def _verify(self, names):
        """Read files; stamp the right ones, note what is wrong with others.
        """
        if names:
            print(f"Verifying {len(names)} files in {self.folder}")
        with tqdm(
            total=len(names), desc="Verified", unit="file", disable=None
        ) as bar, ThreadPoolExecutor(WORKERS) as pool:
            for name, problem in zip(names, pool.map(self._check, names)):
                self.problems[name] = problem
                bar.update()
                if problem:
                    print(f"{self.folder / name} is refused: {problem}")

    def _check(self, name):
        path, expected = self.folder / name, self.record["files"][name]
        if not path.is_file():
            return "not a regular file"
        # Before it is read: a file that changes meanwhile is not stamped.
        seal = self._seal(name)
        if (size := path.stat().st_size) != expected["size"]:
            return f"{size:,} bytes instead of {expected['size']:,}"
        if (sha256 := _sha256(path)) != expected["sha256"]:
            return f"SHA-256 {sha256} instead of {expected['sha256']}"
        _write(self.state / f"{name}.stamp", seal)
        return ""
