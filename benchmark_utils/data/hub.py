"""Verified downloads: files of a Hugging Face dataset repository in a folder.

``fetch_shards`` sees to it that a folder holds certain files of a repository
at a revision, each with the size and the SHA-256 that the Hub has on record.

The record is taken once and stored beside the files (``stamps.py``), with the
commit that the revision stood for: delete it to follow a branch that moved.
Every file is verified against it once. Then neither a request is made nor a
file read, unless one has changed.

A file takes its name only when it is complete and right. What was there
before and is not what the Hub ever had may be somebody's own work: it is not
deleted but renamed to ``<file>.rejected``, once its replacement is there.
With neither a record nor a network, files are used as they are.
"""
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import hf_hub_url

from benchmark_utils.data.stamps import Notes
from benchmark_utils.data.transfer import (
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
        self.folder = Path(folder)
        self.revision = revision
        self.notes = Notes(folder)
        self.key = f"{repo_id.replace('/', '--')}@{quote(revision, safe='')}"
        self.record = self.notes.read_record(self.key)
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
                    f"{len(paths)} file(s) in {self.folder} are used as they "
                    f"are, unverified: no record of {self.repo_id} is stored "
                    f"beside them. {error}"
                )
                return paths
        if self._pending():
            with self.notes.exclusive() as obstacle:
                try:
                    self._complete(obstacle)
                except HubUnavailable as error:
                    raise HubUnavailable(
                        f"{self._listed(self._pending())}\n{error} Where it "
                        f"can, fetch {self._url('')}<file> and put the files "
                        f"into {self.folder} under their names."
                    ) from None
        return paths

    def _pending(self):
        """The names of files that aren't known to be right."""
        if self.record is None:
            return [n for n in self.names if not (self.folder / n).exists()]
        files = self.record["files"]
        if unknown := set(self.names).difference(files):
            raise ValueError(
                f"The dataset repository {self.repo_id} at revision="
                f"{self.revision!r} (commit {self.record['commit']}) has no "
                f"large file {min(unknown)}. If it has one by now, delete "
                f"{self.notes.record_path(self.key)}."
            )
        return [
            name for name in self.names
            if self.notes.stamped_hash(name) != files[name]["sha256"]
        ]

    def _complete(self, obstacle):
        """Verify what is there and fetch the rest.

        ``obstacle`` is the error why the folder can't be written, or None.
        """
        # Another process may have done it all while this one waited.
        stored = self.notes.read_record(self.key)
        self.record = stored or self.record
        if self.record is None and obstacle is None:
            self.record = ask_record(self.repo_id, self.revision)
        if self.record is not None:
            if stored is None:
                self.notes.write_record(self.key, self.record)
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

    def _verify(self, names):
        if names:
            print(f"Verifying {len(names)} file(s) in {self.folder}")

        def verify(name):
            return self.notes.verify(
                self.folder / name, name, **self.record["files"][name]
            )

        with ThreadPoolExecutor(WORKERS) as pool:
            for name, problem in zip(names, pool.map(verify, names)):
                self.problems[name] = problem
                if problem:
                    print(f"{self.folder / name} is refused: {problem}")

    def _download(self, names):
        total = sum(self.record["files"][name]["size"] for name in names)
        received = sum(size_of(self.notes.part(name)) for name in names)
        free = shutil.disk_usage(self.folder).free
        if total - received > free:
            raise OSError(
                f"{self._listed(names)}\n{total - received:,} bytes have to "
                f"be fetched, but {self.folder} has only {free:,} bytes of "
                "free disk space."
            )
        print(
            f"Fetching {len(names)} file(s), {total - received:,} bytes, from "
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
        path, part = self.folder / name, self.notes.part(name)
        file = self.record["files"][name]
        is_own = self.notes.stamped_hash(name) is not None
        for _ in range(MAX_FETCHES):
            receive(self._url(name), part, file["size"], progress)
            if not (problem := self.notes.verify(part, name, **file)):
                break
            progress.update(-file["size"])
            part.unlink()
        else:
            raise OSError(
                f"{self._url(name)} was received {MAX_FETCHES} times with "
                f"{problem}, and thrown away. Something on the way changes "
                "it: try without proxy or mirror, or later."
            )
        if os.path.lexists(path) and not is_own:
            aside = path.with_name(f"{name}.rejected")
            while os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}.rejected")
            path.rename(aside)
            print(f"The {name} that was there is kept as {aside}")
        os.replace(part, path)

    def _url(self, name):
        return hf_hub_url(
            self.repo_id, name, repo_type="dataset",
            revision=self.record["commit"] if self.record else self.revision,
        )

    def _listed(self, names, most=5):
        sizes = self.record["files"] if self.record else {}
        lines = [
            f"  {name}: {self.problems.get(name, 'missing')}"
            + (f" ({sizes[name]['size']:,} bytes)" if sizes else "")
            for name in names
        ]
        if len(lines) > most:
            lines[most - 1:-1] = [f"  ... {len(lines) - most} more ..."]
        title = f"{len(names)} of {len(self.names)} file(s) missing or wrong"
        return "\n".join([f"{title} in {self.folder}:", *lines])
