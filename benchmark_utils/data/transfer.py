"""What goes over the wire from the Hugging Face Hub: records and files.

Addresses, transport, proxies, tokens, time-outs and offline mode are
huggingface_hub's, with the settings its users know. It also tries again what
can be tried again, up to a point; ``_retried`` adds the rest. Only its
``hf_hub_download`` isn't used: it deletes what it received when it breaks
off, so that nothing could be continued by another process.
"""
import contextlib
import json
import os
import time

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

# huggingface_hub hands on 10 MiB at a time, and forgets what it has of them
# when the connection breaks: one that always breaks sooner would never do.
constants.DOWNLOAD_CHUNK_SIZE = 2**20
# Seconds before each further attempt at what huggingface_hub gives up: server
# errors, and connections lost for longer than it waits.
RETRY_WAITS = (1, 2, 4)
# The libraries below huggingface_hub, which has changed them over time; their
# errors have no common base.
TRANSPORTS = ("httpx2", "httpx", "requests", "urllib3")


class HubUnavailable(OSError):
    """The Hub can't be reached, or can't answer for the moment."""


class Progress(tqdm):
    """One bar for many downloads, through which they can be stopped."""

    is_stopped = False

    def update(self, n=1):
        if self.is_stopped:
            raise InterruptedError("Another download has failed.")
        return super().update(n)


def ask_record(repo_id, revision, attempts=len(RETRY_WAITS) + 1):
    """Ask the Hub what a dataset repository holds at a revision.

    Returns
    -------
    record : dict
        "commit" (str), and "files": name -> dict of "size" (bytes) and
        "sha256" (hexadecimal), of the files that have one: all large ones.

    Raises
    ------
    ValueError
        If the repository has no such revision.
    OSError
        ``HubUnavailable``, or the Hub's refusal.
    """
    def attempt():
        info = HfApi().dataset_info(
            repo_id, revision=revision, files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        return {"commit": info.sha, "files": {
            file.rfilename: {
                "size": file.lfs.size, "sha256": file.lfs.sha256
            }
            for file in info.siblings if file.lfs is not None
        }}

    with _explained(f"the dataset repository {repo_id}"):
        try:
            return _retried(attempt, RETRY_WAITS[:attempts - 1])
        except RevisionNotFoundError:
            raise ValueError(
                f"revision={revision!r} is no branch, tag or commit of the "
                f"dataset repository {repo_id} on {constants.ENDPOINT}."
            ) from None


def receive(url, part, size, progress):
    """Fetch what is missing of a file.

    Parameters
    ----------
    url : str
        Asked again at each attempt: what it redirects to may expire.
    part : Path
        Where the file is received. What it holds already is kept, also when
        this one fails.
    size : int
        Of the whole file, in bytes.
    progress : Progress
        Told the bytes received.

    Raises
    ------
    OSError
        ``HubUnavailable``, the Hub's refusal, or a full disk.
    """
    def attempt():
        if size_of(part) > size:
            part.unlink()
        with part.open("ab") as file:
            http_get(
                url, file, resume_size=size_of(part), expected_size=size,
                # Compressed on the way, it could not be continued.
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                _tqdm_bar=progress,
            )
            file.flush()
            os.fsync(file.fileno())

    with _explained(url):
        _retried(attempt, RETRY_WAITS, lambda: size_of(part))


@contextlib.contextmanager
def _explained(what):
    """Say what the transport's errors mean for the user."""
    try:
        yield
    except Exception as error:
        summary = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if _is_unavailable(error):
            raise HubUnavailable(
                f"The Hub can't be reached ({summary})."
            ) from None
        if isinstance(error, HfHubHTTPError):
            raise OSError(
                f"The Hub refuses {what} ({summary}). Check the name; if it "
                "is private or gated, log in with `hf auth login` or set "
                "HF_TOKEN."
            ) from None
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(
                f"{what} can't be written to disk: {error}. What has been "
                "received is kept and will be continued."
            ) from None
        raise


def _retried(action, waits, measure=lambda: None):
    """Repeat what fails for want of a Hub, after some seconds each time. A
    change of ``measure()`` is progress, and begins the waits again."""
    remaining, before = iter(waits), measure()
    while True:
        try:
            return action()
        except Exception as error:
            if measure() != before:
                remaining, before = iter(waits), measure()
            wait = next(remaining, None)
            if (
                wait is None or not _is_unavailable(error)
                or isinstance(error, OfflineModeIsEnabled)
            ):
                raise
        time.sleep(wait)


def _is_unavailable(error):
    """Whether an error says that the Hub can't be reached for the moment."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    # A login page in place of the Hub's answer is no JSON, and an OSError
    # without number is huggingface_hub's for less data than announced.
    return (
        isinstance(error, (OfflineModeIsEnabled, json.JSONDecodeError))
        or (type(error) is OSError and error.errno is None)
        or type(error).__module__.partition(".")[0] in TRANSPORTS
    )


def size_of(path):
    """Size of a file in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
