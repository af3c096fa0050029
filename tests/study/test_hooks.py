"""Hooks tell of what happens, and nothing that becomes of a message gets in a study's way."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes import Bench, config, gain, mode

from jaxresearch.config import HooksConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.study.heartbeat import liveness
from jaxresearch.study.hooks import Hooks
from jaxresearch.study.study import Study

SCRIPT = [gain(0.1), gain(0.05, parent=1, old=0.1)]


class Server:
    """Notes what is posted to it, and behaves as `way` says."""

    def __init__(self, way: str = "well") -> None:
        self.messages: list[dict] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.messages.append(json.loads(body))
                if way == "hangs":
                    time.sleep(5)
                if way == "trickles":
                    for _ in range(50):
                        self.wfile.write(b"H")
                        time.sleep(0.1)
                self.send_response({"fails": 500, "redirects": 302}.get(way, 200))
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
                if way == "huge":
                    while True:
                        self.wfile.write(b"x" * 2**20)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(way: str = "well") -> Iterator[Server]:
    server = Server(way)
    yield server
    server.close()


def told(tmp_path: Path, **settings: object) -> tuple[Study, Hooks]:
    """A study of two experiments, the first of which is kept, with such hooks."""
    hooks = Hooks.of(HooksConfig.model_validate(settings), tmp_path / "study")
    assert hooks is not None
    hooks._pauses = (0.01, 0.01)
    return Bench(tmp_path / "study", config(2)).run(SCRIPT, hooks=hooks), hooks


def test_a_keep_and_the_end_are_told_with_the_ledger_s_head(tmp_path: Path):
    with serving() as server:
        study, hooks = told(tmp_path, url=server.url)
    keep, stop = server.messages
    kept = study.history.entries[1]
    assert (keep["event"], keep["experiment"], keep["val_bpb"]) == ("keep", 1, kept.experiment.val_bpb)
    assert keep["gain"] == -kept.decision.difference
    assert keep["reason"] == kept.decision.reason
    assert (stop["event"], stop["reason"], stop["finished"]) == ("stop", "all 2 experiments are done", True)
    assert (stop["done"], stop["planned"], stop["best"]) == (2, 2, 1)
    assert stop["head"] == study.history.head
    study.check_head(keep["head"])
    assert hooks.state == {"sent": 2, "failed": 0, "last_error": None}


def test_incidents_are_told_by_kind_and_by_whose_they_are(tmp_path: Path):
    with serving() as server:
        hooks = Hooks.of(HooksConfig(url=server.url, on=("stop",)), tmp_path / "study")
        study = Bench(tmp_path / "study", config(2)).run([mode("peek"), gain(0.1)], hooks=hooks)
    (stop,) = server.messages
    assert stop["incidents"]["by_source"] == {"greedy / no model": {"failed audit": 1}}
    assert (stop["incidents"]["total"], stop["incidents"]["by_kind"]) == (1, {"failed audit": 1})
    assert [each["experiment"] for each in stop["incidents"]["last"]] == [1] == [study.history.incidents[0].experiment]


@pytest.mark.parametrize(
    ("way", "why", "seconds"),
    [("fails", "HTTP Error 500", 5), ("redirects", "302", 5), ("hangs", "", 0.3), ("trickles", "", 0.3)],
)
def test_a_server_that_does_not_take_it_is_no_fault_of_the_study(tmp_path: Path, way: str, why: str, seconds: float):
    with serving(way) as server:
        study, hooks = told(tmp_path, url=server.url, timeout_seconds=seconds)
    assert study.history.stopped.finished
    assert hooks.state["sent"] == 0
    assert hooks.state["failed"] >= 1
    assert why in hooks.state["last_error"]
    said = liveness(study.layout, study.history)
    assert "could not be sent" in said.said
    assert said.facts["heartbeat"]["hooks"]["failed"] >= 1


def test_a_huge_answer_is_not_read(tmp_path: Path):
    with serving("huge") as server:
        _, hooks = told(tmp_path, url=server.url)
    assert hooks.state["sent"] == 2


def test_a_command_gets_the_message_without_a_shell(tmp_path: Path):
    script = tmp_path / "note it.py"
    script.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10)); print('x' * 10**7)")
    out = tmp_path / "out; touch nothing"
    _, hooks = told(tmp_path, command=f"{sys.executable} '{script}' '{out}'", on=["stop"])
    (message,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert message["event"] == "stop"
    assert hooks.state["sent"] == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [("/no/such/program", "FileNotFoundError"), ("false", "ended with status 1"), ("sleep 60", "")],
)
def test_a_command_that_fails_is_shown_in_status(tmp_path: Path, command: str, why: str):
    study, hooks = told(tmp_path, command=command, timeout_seconds=0.3, on=["stop"])
    assert study.history.stopped.finished
    assert hooks.state["failed"] == 1
    assert why in hooks.state["last_error"]


def test_an_error_is_told_and_secrets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-this-is-secret")

    class Broken:
        async def propose(self, view, slots):
            from jaxresearch.errors import JaxresearchError

            raise JaxresearchError("no quota for sk-this-is-secret.")

    with serving() as server:
        monkeypatch.setenv("HOOK_ADDRESS", server.url)
        hooks = Hooks.of(HooksConfig(url="$HOOK_ADDRESS"), tmp_path / "study")
        with pytest.raises(Exception, match="no quota"):
            Bench(tmp_path / "study", config(2)).run([], strategy=Broken(), hooks=hooks)
    (message,) = server.messages
    assert message["event"] == "error"
    assert "no quota" in message["reason"]
    assert "sk-this" not in json.dumps(message)


def test_settings_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for wrong in ({"url": "file:///etc/passwd"}, {"url": "ftp://x"}, {"command": "'open"}, {"command": " "}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HooksConfig.model_validate(wrong)
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(ConfigurationError, match="NO_SUCH"):
        Hooks.of(HooksConfig(url="$NO_SUCH"), tmp_path)
    assert Hooks.of(HooksConfig(), tmp_path) is None


@pytest.mark.parametrize(("way", "status"), [("well", 0), ("fails", 1)])
def test_they_can_be_tried(tmp_path: Path, way: str, status: int, capsys: pytest.CaptureFixture[str]):
    from jaxresearch.cli.app import main

    with serving(way) as server:
        settings = {"url": server.url, "timeout_seconds": 5}
        Bench(tmp_path / "study", config(1, hooks=settings)).create().close()
        with pytest.raises(SystemExit) as ended:
            main(["hooks", "test", str(tmp_path / "study")])
    assert ended.value.code == status
    assert server.messages[0]["event"] == "test"
    assert ("was not sent" in capsys.readouterr().err) == (status == 1)
