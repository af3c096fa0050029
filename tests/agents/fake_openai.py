"""A provider on 127.0.0.1 that answers as it is told, and OpenAI's chat format to answer in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


def message(content: str | None = None, *, tool: str = "", arguments: str = "", finish: str = "") -> Reply:
    """A chat completion that says `content`, or calls `tool`."""
    said: dict[str, object] = {"role": "assistant", "content": content}
    if tool:
        said["tool_calls"] = [
            {"id": "call-1", "type": "function", "function": {"name": tool, "arguments": arguments}},
        ]
    choice = {"index": 0, "message": said, "finish_reason": finish or ("tool_calls" if tool else "stop")}
    return completion([choice])


def completion(choices: list[dict[str, object]]) -> Reply:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": choices,
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
    return Reply(200, json.dumps(body).encode())


def refusal(status: int, code: str, text: str, **headers: str) -> Reply:
    body = {"error": {"message": text, "type": code, "param": None, "code": code}}
    return Reply(status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()})


class FakeOpenAI:
    """Serves `replies` in turn, the last one for ever. A reply may be a callable that takes the socket's handler."""

    def __init__(self, *replies: Reply | Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.replies, self.requests, self.released = list(replies), [], threading.Event()
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.requests.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if callable(reply):
                    reply(self)
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stall(self, _: BaseHTTPRequestHandler) -> None:
        self.released.wait(10)

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte at a time, so that no read ever times out."""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        while not self.released.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    def drop(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    def __enter__(self) -> FakeOpenAI:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
