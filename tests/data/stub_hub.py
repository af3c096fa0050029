"""A stub of the hub on loopback: the few endpoints that fetching a dataset uses, with faults on demand."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet

COMMIT = "1" * 40


def parquet_bytes(texts: Sequence[str]) -> bytes:
    """A parquet file with the column `text`, in row groups of 50."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), out, row_group_size=50)
    return out.getvalue()


class StubHub:
    """One dataset, `repo`, whose `files` are those of `commit`; the branch `main` is at that commit until it moves on.

    files: path -> content. drops: path -> after how many bytes each next connection is cut. corrupt: path -> how many
    next downloads have a wrong byte. stuck: path -> after how many bytes a download hangs until the hub closes.
    status: what every answer is instead. requests: (method, path, Range header) of all so far.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files, self.commit, self.main = repo, files, COMMIT, COMMIT
        self.sha256: dict[str, str] = {}
        self.drops: dict[str, list[int]] = defaultdict(list)
        self.corrupt: dict[str, int] = defaultdict(int)
        self.stuck: dict[str, int] = {}
        self.status: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def downloads(self, path: str) -> list[str | None]:
        """The Range header of each download of `path`."""
        return [span for method, asked, span in self.requests if method == "GET" and asked.endswith(f"/{path}")]

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self)

            def do_POST(self) -> None:
                hub._answer(self)

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        info, listing = f"/api/datasets/{self.repo}/revision/", f"/api/datasets/{self.repo}/paths-info/"
        content = f"/datasets/{self.repo}/resolve/{self.commit}/"
        if self.status is not None:
            _send(request, self.status, b"{}")
        elif path.startswith("/api/datasets/") and f"/{self.repo}/" not in path:
            _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path in (f"{info}main", info + self.commit):
            siblings = [{"rfilename": name} for name in [".gitattributes", *self.files]]
            sha = self.main if path.endswith("main") else self.commit
            _send_json(request, {"id": self.repo, "sha": sha, "siblings": siblings})
        elif path == listing + self.commit:
            _send_json(request, [self._facts(name) for name in parse_qs(body.decode())["paths"] if name in self.files])
        elif path.startswith("/api/datasets/"):
            _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(content) and path.removeprefix(content) in self.files:
            self._send_file(request, path.removeprefix(content))
        else:
            _send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _facts(self, name: str) -> dict[str, object]:
        content = self.files[name]
        sha256 = self.sha256.get(name) or hashlib.sha256(content).hexdigest()
        lfs = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content, span = self.files[name], request.headers.get("Range")
        if self.corrupt[name] > 0:
            self.corrupt[name] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        rest = content[start:]
        request.send_response(206 if span else 200)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", self.commit)
        request.send_header("Content-Length", str(len(rest)))
        if span:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if self.drops[name]:
            request.wfile.write(rest[: self.drops[name].pop(0)])
            request.close_connection = True
        elif name in self.stuck:
            request.wfile.write(rest[: self.stuck.pop(name)])
            request.wfile.flush()
            self._closing.wait(60)
            request.close_connection = True
        else:
            request.wfile.write(rest)


def _send_json(request: BaseHTTPRequestHandler, content: object) -> None:
    _send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
