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
"""
import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from huggingface_hub import hf_hub_url
from huggingface_hub.utils.sha import sha_fileobj

from benchmark_utils.transfer import (
    HubUnavailable,
    Progress,
    ask_record,
    receive,
    size_of,
)

# Files fetched or read at once, as many as huggingface_hub's own downloads.
WORKERS = 8
# Times that a file is fetched which arrives complete but wrong.
MAX_FETCHES = 2


def fetch_shards(repo_id, filenames, folder, revision="main"):
    """Make a folder hold verified files of a dataset repository.

    May be called again, by several processes at once, and after a kill: what
    is verified is neither asked for nor read again, and what was received is
    not fetched again.

    Parameters
    ----------
    repo_id : str
        Dataset repository on the Hub, "owner/name".
    filenames : list of str
        Files at the root of the repository, large ones (stored with LFS or
        Xet): of the others the Hub has no SHA-256.
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
        If files are missing or wrong and can't be fetched: no network
        (``HubUnavailable``), a refusal by the Hub, wrong content sent again
        and again, not enough disk space, a folder that can't be written.
    """
    return _Mirror(repo_id, filenames, folder, revision).fetch()


class _Mirror:
    """Some files of a repository at a revision, in a folder."""

    def __init__(self, repo_id, names, folder, revision):
        self.repo_id = repo_id
        self.names = names
        self.revision = revision
        self.folder = Path(folder)
        self.notes = self.folder / ".hub"
        key = f"{repo_id.replace('/', '--')}@{quote(revision, safe='')}"
        self.record_path = self.notes / f"{key}.json"
        self.record = self._read_record()
        # What is wrong with the files that were read, "" if nothing is.
        self.problems = {}

    def fetch(self):
        paths = [self.folder / name for name in self.names]
        if self.record is None and all(path.exists() for path in paths):
            # Asked before the folder is touched: it may be somebody else's.
            try:
                self.record = ask_record(
                    self.repo_id, self.revision, attempts=1
                )
            except HubUnavailable as error:
                print(
                    f"{len(paths)} files in {self.folder} are used as they "
                    f"are, unverified: no record of {self.repo_id} is stored "
                    f"beside them. {error}"
                )
                return paths
        if self._pending():
            with self._exclusive() as obstacle:
                try:
                    self._complete(obstacle)
                except HubUnavailable as error:
                    raise HubUnavailable(
                        f"{self._listed(self._pending())}\n{error} Where it "
                        f"can, fetch {self._url('')}<file> and put the files "
                        f"into {self.folder} under their names."
                    ) from error
        return paths

    def _pending(self):
        """The names of files that aren't known to be right."""
        if self.record is None:
            return [n for n in self.names if not (self.folder / n).exists()]
        unknown = set(self.names).difference(self.record["files"])
        if unknown:
            raise ValueError(
                f"The dataset repository {self.repo_id} at revision="
                f"{self.revision!r} (commit {self.record['commit']}) has no "
                f"large file {min(unknown)}. If it has one by now, delete "
                f"{self.record_path}."
            )
        return [
            name for name in self.names
            if self._stamped_hash(name) != self.record["files"][name]["sha256"]
        ]

    def _complete(self, obstacle):
        """Verify what is there and fetch the rest.

        ``obstacle`` is the error why the folder can't be written, or None.
        """
        # Another process may have done it all while this one waited.
        stored = self._read_record()
        self.record = stored or self.record
        if self.record is None and obstacle is None:
            self.record = ask_record(self.repo_id, self.revision)
        if self.record is not None:
            _write(self.record_path, json.dumps(self.record, indent=1))
            self._verify([
                name for name in self._pending()
                if os.path.lexists(self.folder / name)
            ])
        wanted = [
            name for name in self._pending()
            if self.problems.get(name, "missing")
        ]
        if wanted and obstacle is not None:
            hint = "" if stored or not any(self.problems.values()) else (
                " To use files of your own as they are, set HF_HUB_OFFLINE=1."
            )
            raise OSError(
                f"{self._listed(wanted)}\nThey can't be fetched, because "
                f"{self.folder} can't be written ({obstacle}).{hint}"
            )
        if wanted and stored:
            # One clear answer, before many downloads wait for theirs.
            ask_record(self.repo_id, stored["commit"])
        if wanted:
            self._download(wanted)

    # Files that are there

    def _read_record(self):
        try:
            return json.loads(self.record_path.read_text())
        except (OSError, ValueError):
            return None

    def _stamped_hash(self, name):
        """The SHA-256 found in a file that hasn't changed since, or None."""
        try:
            stamp = (self.notes / f"{name}.stamp").read_text()
            sha256, version = stamp.split(" ", 1)
            return sha256 if version == _version(self.folder / name) else None
        except (OSError, ValueError):
            return None

    def _verify(self, names):
        if names:
            print(f"Verifying {len(names)} files in {self.folder}")
        with ThreadPoolExecutor(WORKERS) as pool:
            for name, problem in zip(names, pool.map(self._check, names)):
                self.problems[name] = problem
                if problem:
                    print(f"{self.folder / name} is refused: {problem}")

    def _check(self, name):
        """Stamp the file if it is right, else return what is wrong."""
        path, expected = self.folder / name, self.record["files"][name]
        if not path.is_file():
            return "not a file"
        if (size := size_of(path)) != expected["size"]:
            return f"{size:,} bytes instead of {expected['size']:,}"
        # Taken before it is read: it may change meanwhile.
        version = _version(path)
        if (sha256 := _sha256(path)) != expected["sha256"]:
            return f"SHA-256 {sha256} instead of {expected['sha256']}"
        _write(self.notes / f"{name}.stamp", f"{sha256} {version}")
        return ""

    # Files that aren't

    def _download(self, names):
        received = sum(size_of(self._part(name)) for name in names)
        total = sum(self.record["files"][name]["size"] for name in names)
        free = shutil.disk_usage(self.folder).free
        if total - received > free:
            raise OSError(
                f"{self._listed(names)}\n{total - received:,} bytes have to "
                f"be fetched, but {self.folder} has only {free:,} bytes of "
                "free disk space."
            )
        print(
            f"Fetching {len(names)} files, {total - received:,} bytes, from "
            f"{self._url('')} to {self.folder}"
        )
        with Progress(
            total=total, initial=received, desc="Fetched", unit="B",
            unit_scale=True, disable=None,
        ) as progress, ThreadPoolExecutor(WORKERS) as pool:
            downloads = [pool.submit(self._get, n, progress) for n in names]
            try:
                for download in as_completed(downloads):
                    download.result()
            except BaseException:
                progress.is_stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _get(self, name, progress):
        """Fetch one file, verify it, and put it in its place."""
        part, expected = self._part(name), self.record["files"][name]
        for _ in range(MAX_FETCHES):
            receive(self._url(name), part, expected["size"], progress)
            version = _version(part)
            if (sha256 := _sha256(part)) == expected["sha256"]:
                break
            progress.update(-expected["size"])
            part.unlink()
        else:
            raise OSError(
                f"{self._url(name)} was received {MAX_FETCHES} times with "
                f"SHA-256 {sha256} instead of {expected['sha256']}, and "
                "thrown away. Something on the way changes it: try without "
                "proxy or mirror, or later."
            )
        path = self.folder / name
        if os.path.lexists(path) and self._stamped_hash(name) is None:
            aside = path.with_name(f"{name}.rejected")
            while os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}.rejected")
            path.rename(aside)
            print(f"The {name} that was there is kept as {aside}")
        os.replace(part, path)
        _write(self.notes / f"{name}.stamp", f"{sha256} {version}")

    def _part(self, name):
        return self.notes / f"{name}.part"

    def _url(self, name):
        return hf_hub_url(
            self.repo_id, name, repo_type="dataset",
            revision=self.record["commit"] if self.record else self.revision,
        )

    # Words and order

    def _listed(self, names, most=5):
        sizes = self.record["files"] if self.record else {}
        lines = [
            f"  {name}: {self.problems.get(name, 'missing')}"
            + (f" ({sizes[name]['size']:,} bytes)" if sizes else "")
            for name in names
        ]
        if len(lines) > most:
            lines[most - 1:-1] = [f"  ... {len(lines) - most} more ..."]
        title = f"{len(names)} of {len(self.names)} files are missing or wrong"
        return "\n".join([f"{title} in {self.folder}:", *lines])

    @contextlib.contextmanager
    def _exclusive(self):
        """Keep other processes out; yields why that's impossible, or None."""
        lock, obstacle = FileLock(self.notes / "lock", mode=0o664), None
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"Waiting for another process at work in {self.folder}")
                lock.acquire()
        except OSError as error:
            obstacle = error
        try:
            yield obstacle
        finally:
            lock.release()


def _sha256(path):
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def _version(path):
    """What changes when a file is written to or replaced."""
    info = path.stat()
    return f"{info.st_size} {info.st_mtime_ns}"


def _write(path, text):
    """Write a note for next time, whole or not at all.

    It can be done without, in a folder that can't be written or on a full
    disk: the work it saves is done again.
    """
    with contextlib.suppress(OSError):
        draft = path.with_name(f"{path.name}.tmp")
        draft.write_text(text)
        os.replace(draft, path)
