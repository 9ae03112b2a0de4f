"""A Hub on loopback for one dataset repository, with faults on request.

It answers what huggingface_hub's client asks to fetch files: the dataset's
description with the size and the SHA-256 of each file, ``resolve`` addresses
that redirect to another host (as the real Hub does to its CDN), ranges.

    with FakeHub({"a.bin": b"..."}) as hub:
        hub.faults["a.bin"] = ["500", "cut 1000"]    # first two requests
        subprocess.run([...], env=os.environ | hub.environment)
        hub.requests                                  # what was asked
"""
import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Request = namedtuple("Request", "host path range authorization")
PIECE = 64 * 1024


class FakeHub:
    """Serve ``files`` (name -> bytes) as the dataset ``repo_id``.

    Attributes
    ----------
    revisions : dict of str to (commit, files)
        "main" at first.
    faults : dict of str to list of str
        Faults of the next requests, per file name, or "record" for the
        dataset's description: "<status>", "cut <n>" and "reset <n>" (the
        connection ends after n bytes, in order or with a reset), "wrong" (one
        byte differs), "slow <n>" (bytes per second), "stall", "whole" (the
        range is ignored), "longer <n>" (more bytes), "html" (a login page).
    requests : list of Request
    bytes_sent : int
        Of file contents.
    token : str or None
        If set, the repository is private.
    has_ranges : bool
        If not, a request of a range is answered with 416.
    hashes : dict of str to str or None
        SHA-256 on record, where it is not that of the file.
    """

    def __init__(self, files, repo_id="owner/shards"):
        self.repo_id = repo_id
        self.revisions = {"main": ("1" * 40, dict(files))}
        self.faults = defaultdict(list)
        self.requests = []
        self.bytes_sent = 0
        self.token = None
        self.has_ranges = True
        self.hashes = {}

    def __enter__(self):
        self._servers = [_serve(self, _Hub), _serve(self, _Cdn)]
        self.url, self.cdn_url = [
            # Different names, since credentials are kept per host.
            f"http://{host}:{server.server_port}" for host, server
            in zip(["127.0.0.1", "localhost"], self._servers, strict=True)
        ]
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def environment(self):
        """Points a client, in a process of its own, to this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}

    def files_of(self, commit):
        for known, files in self.revisions.values():
            if known == commit:
                return files
        return None

    def asked(self, host, name):
        """Requests to "hub" or "cdn" for a file or revision."""
        return [
            request for request in self.requests if request.host == host
            and urlsplit(request.path).path.endswith(f"/{name}")
        ]


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # Broken connections are intended.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _serve(hub, handler):
    server = _Server(
        ("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub})
    )
    threading.Thread(
        target=server.serve_forever, args=(0.01,), daemon=True
    ).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def remember(self):
        self.hub.requests.append(Request(
            self.host, self.path, self.headers["Range"],
            self.headers["Authorization"],
        ))

    def next_fault(self, key):
        faults = self.hub.faults[key]
        return (faults.pop(0) if faults else "").split()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {"Content_Length": len(body)} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer_fault(self, fault):
        """Send the answer of a fault; return whether it has one."""
        if fault and fault[0].isdigit():
            # A rate limit that is over soon.
            extra = {"Retry_After": 0} if fault[0] == "429" else {}
            self.answer(int(fault[0]), b"no", **extra)
        elif fault == ["html"]:
            self.answer(200, b"<html>log in</html>", Content_Type="text/html")
        else:
            return False
        return True


class _Hub(_Handler):
    host = "hub"

    def do_GET(self):
        self.remember()
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        about, resolve = (
            f"/api/datasets/{hub.repo_id}/revision/",
            f"/datasets/{hub.repo_id}/resolve/",
        )
        if not path.startswith((about, resolve)):
            self.refuse(404, "RepoNotFound")
        elif hub.token and (
            self.headers["Authorization"] != f"Bearer {hub.token}"
        ):
            self.refuse(401, "RepoNotFound")
        elif path.startswith(about):
            self.describe(path.removeprefix(about))
        else:
            commit, _, name = path.removeprefix(resolve).partition("/")
            self.resolve(commit, name)

    def refuse(self, status, code):
        self.answer(status, b"", X_Error_Code=code, X_Error_Message=code)

    def describe(self, revision):
        if self.answer_fault(self.next_fault("record")):
            return
        commit, _ = self.hub.revisions.get(revision, (revision, None))
        files = self.hub.files_of(commit)
        if files is None:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": "README.md", "size": 2, "blobId": "0"}] + [
            {
                "rfilename": name, "size": len(content), "blobId": "0",
                "lfs": {
                    "sha256": self.hub.hashes.get(name, _sha256(content)),
                    "size": len(content), "pointerSize": 134,
                },
            }
            for name, content in files.items()
        ]
        body = {"id": self.hub.repo_id, "sha": commit, "siblings": siblings}
        self.answer(
            200, json.dumps(body).encode(), Content_Type="application/json"
        )

    def resolve(self, commit, name):
        files = self.hub.files_of(commit)
        if files is None or name not in files:
            self.refuse(404, "EntryNotFound")
            return
        self.answer(
            302, X_Repo_Commit=commit, X_Linked_Size=len(files[name]),
            X_Linked_Etag=f'"{_sha256(files[name])}"',
            Location=f"{self.hub.cdn_url}/{commit}/{name}",
        )


class _Cdn(_Handler):
    host = "cdn"

    def do_GET(self):
        self.remember()
        _, commit, name = self.path.split("/")
        content = self.hub.files_of(commit)[name]
        fault = self.next_fault(name)
        if self.answer_fault(fault):
            return
        kind, amount = (*fault, "", "")[:2]
        if self.headers["Range"] and not self.hub.has_ranges:
            self.answer(416)
            return
        start = 0
        if self.headers["Range"] and kind != "whole":
            start = int(self.headers["Range"].removeprefix("bytes=")[:-1])
        if start >= len(content):
            self.answer(416)
            return
        if kind == "longer":
            content = content + bytes(int(amount))
        if kind == "wrong":
            content = bytearray(content)
            content[len(content) // 2] ^= 1
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            last = len(content) - 1
            self.send_header(
                "Content-Range", f"bytes {start}-{last}/{len(content)}"
            )
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.send(memoryview(content)[start:], kind, amount)

    def send(self, content, kind, amount):
        if kind in ("cut", "reset"):
            content = content[:int(amount)]
        for begin in range(0, len(content), PIECE):
            if kind == "slow":
                time.sleep(PIECE / int(amount))
            self.wfile.write(content[begin:begin + PIECE])
            self.hub.bytes_sent += len(content[begin:begin + PIECE])
            if kind == "stall":
                time.sleep(60)
        if kind in ("cut", "reset"):
            self.close_connection = True
        if kind == "reset":
            # A reset discards what the client hasn't read yet.
            time.sleep(0.3)
            # Closed without lingering, the kernel sends a reset.
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            os.close(self.connection.detach())
