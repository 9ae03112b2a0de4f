"""Notes on the files of a folder that were verified, in its folder ``.hub``.

- ``<file>.stamp`` is the SHA-256 that was found in the file, with the size
  and the modification time it had. While these stay the same, the file need
  not be read again.
- ``<key>.json`` is the record of what the files should be.
- ``<file>.part`` is a download under way.
- ``lock`` is held while files are verified and fetched. The kernel frees it
  when its process dies.
"""
import contextlib
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub.utils.sha import sha_fileobj


class Notes:
    """The notes of one folder.

    Notes that can't be written, on a full disk or in somebody else's folder,
    are done without: the work they save is done again.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self.folder / ".hub"

    def part(self, name):
        """Where a download under way is."""
        return self.path / f"{name}.part"

    @contextlib.contextmanager
    def exclusive(self):
        """Keep other processes out.

        Yields the error why the folder can't be written, or None.
        """
        lock, obstacle = FileLock(self.path / "lock", mode=0o664), None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
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

    def record_path(self, key):
        return self.path / f"{key}.json"

    def read_record(self, key):
        """The record that was stored, or None."""
        try:
            return json.loads(self.record_path(key).read_text())
        except (OSError, ValueError):
            return None

    def write_record(self, key, record):
        self._write(self.record_path(key), json.dumps(record, indent=1))

    def stamped_hash(self, name):
        """The SHA-256 found in a file that hasn't changed since, or None."""
        try:
            stamp = (self.path / f"{name}.stamp").read_text()
            sha256, version = stamp.split(" ", 1)
            return sha256 if version == _version(self.folder / name) else None
        except (OSError, ValueError):
            return None

    def verify(self, path, name, size, sha256):
        """Read a file, and stamp it under its name if it is right.

        Returns what is wrong, or "".
        """
        if not path.is_file():
            return "not a file"
        # Taken before it is read: it may change meanwhile.
        version = _version(path)
        if (found := path.stat().st_size) != size:
            return f"{found:,} bytes instead of {size:,}"
        with path.open("rb") as file:
            found = sha_fileobj(file).hex()
        if found != sha256:
            return f"SHA-256 {found} instead of {sha256}"
        self._write(self.path / f"{name}.stamp", f"{sha256} {version}")
        return ""

    def _write(self, path, text):
        """Whole, or not at all."""
        with contextlib.suppress(OSError):
            draft = path.with_name(f"{path.name}.tmp")
            draft.write_text(text)
            os.replace(draft, path)


def _version(path):
    """What changes when a file is written to or replaced."""
    info = path.stat()
    return f"{info.st_size} {info.st_mtime_ns}"
