"""A Hub of one repository, on this machine: what huggingface_hub asks of the real one, with the failures that a network has."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest

__all__ = ["Hub", "serving"]


class Hub:
    """Files of `me/…`. revisions: name -> commit, may be changed. cut: bytes after which the next large transfer breaks off; lies: files sent otherwise than
    listed; failures: answers to spoil first; asked: the requests so far."""

    def __init__(self, kind: Literal["models", "datasets"], repo: str, files: dict[str, bytes], revisions: dict[str, str], lfs: int = 1000) -> None:
        self.repo, self.files, self.revisions, self.lfs = repo, files, revisions, lfs
        self.lies, self.failures, self.cut, self.asked = dict[str, bytes](), 0, 0, list[str]()
        self.listing, self.content = f"/api/{kind}/{repo}/revision/", f"{'/datasets' if kind == 'datasets' else ''}/{repo}/resolve/"
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def sibling(self, name: str) -> dict[str, object]:
        """What a listing says of a file: git's hash, and the content's where it is large."""
        data = self.files[name]
        found: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        return found | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if len(data) > self.lfs else {})

    def found(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        if self.failures:
            self.failures -= 1
            return 503, b"{}", {}
        if path.startswith(self.listing):
            sha = self.revisions.get(path.removeprefix(self.listing))
            if sha is None:
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
            return 200, json.dumps({"id": self.repo, "sha": sha, "siblings": [self.sibling(n) for n in self.files]}).encode(), {}
        sha, _, name = path.removeprefix(self.content).partition("/")
        if path.startswith(self.content) and name in self.files:
            tag = hashlib.sha256(self.files[name]).hexdigest()
            return 200, self.lies.get(name, self.files[name]), {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, part = request.path.split("?")[0], request.headers.get("Range")
        self.asked.append(f"{request.command} {path}{' ' + part if part else ''}")
        status, body, headers = self.found(path)
        if status == 200 and part and request.command == "GET" and path.startswith(self.content):
            begin, total = int(part.removeprefix("bytes=").split("-")[0]), len(body)
            status, body, headers = 206, body[begin:], headers | {"Content-Range": f"bytes {begin}-{total - 1}/{total}"}
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            if self.cut and len(body) > 100_000:
                body, self.cut = body[: self.cut], 0
                request.close_connection = True
            request.wfile.write(body)


@contextmanager
def serving(hub: Hub, environment: Mapping[str, str]) -> Iterator[Hub]:
    """The Hub while a test runs, as the one that huggingface_hub asks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"} | dict(environment)).items():
            patch.setenv(name, value)
        yield hub
    hub.close()
