"""Hooks: tell somebody of a keep, a stop, an error, a quarantine, too many incidents. A Reporter that is in no one's way.

A message is one JSON object, POSTed to `hooks.url` and given to `hooks.command` on standard input:

    {"study": folder, "event": "keep" | "stop" | "error" | "quarantine" | "incidents" | "test", "time": ISO 8601,
     "host", "strategy", "experiment": number or null, "val_bpb": of it (else of the incumbent), "gain": bits per byte
     below the incumbent of before, or null, "reason", "best": experiment, "best_val_bpb", "baseline_val_bpb",
     "done": experiments with a verdict, "planned", "finished": the study is over, "incidents": as in `status --json`,
     the last three, "events", "head": of the ledger}

A thread of its own sends them in order, each attempt within `hooks.timeout_seconds`. What cannot be sent after three
attempts is left out, counted and shown by `status`: nothing here fails or delays a study. `head` and `events` anchor the
ledger outside of this machine: `jaxresearch verify STUDY --head HASH`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import HTTPMessage
from pathlib import Path
from typing import Any, Self

from jaxresearch.config import HooksConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.base import RunProgress
from jaxresearch.experiment import Verdict
from jaxresearch.llm import known_secrets, redact
from jaxresearch.study.events import Decided, Event, Quarantined, Stopped
from jaxresearch.study.history import History
from jaxresearch.study.incidents import incidents_object
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.text import one_line

ATTEMPTS = 3
WAITING = 100
"""Messages that may wait to be sent; more are left out."""
_PAUSES = (1.0, 4.0)
"""Seconds between attempts."""
Send = Callable[[bytes, float], None]
"""Sends a message within so many seconds, or raises."""


class Hooks:
    """Sends messages of one study's session. `state` is for `status`: {"sent", "failed", "last_error"}."""

    def __init__(
        self, settings: HooksConfig, folder: Path, ways: dict[str, Send], pauses: tuple[float, ...] = _PAUSES
    ) -> None:
        self._settings, self._folder, self._ways, self._pauses = settings, folder, ways, pauses
        self._secrets = (*known_secrets(), *_secret_parts(settings))
        self._messages: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._ended = threading.Event()
        self.state: dict[str, Any] = {"sent": 0, "failed": 0, "last_error": None}
        self._thread = threading.Thread(target=self._send_all, name="hooks", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: HooksConfig, folder: Path) -> Self | None:
        """The hooks that `settings` ask for; None for none. Raises `ConfigurationError` for what cannot work."""
        ways: dict[str, Send] = {}
        if settings.url is not None:
            url = _resolved(settings.url)
            ways["hooks.url"] = lambda body, seconds: _within(seconds, lambda: _post(url, body, seconds))
        if settings.command is not None:
            command = shlex.split(settings.command)
            ways["hooks.command"] = lambda body, seconds: _run(command, body, seconds)
        return cls(settings, folder, ways) if ways else None

    # Reporter

    def on_event(self, stored: StoredEvent, history: History) -> None:
        name = _name_of(stored.event)
        if name in self._settings.on:
            self._put(message(name, stored, history, self._folder))

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        pass

    def failed(self, error: BaseException, history: History) -> None:
        """The session ends with a fault of ours, which is in no event."""
        if "error" in self._settings.on:
            facts = _facts("error", history, self._folder)
            self._put({**facts, "reason": one_line(f"{type(error).__name__}: {error}", 500)})

    def test(self, history: History) -> None:
        self._put({**_facts("test", history, self._folder), "reason": "jaxresearch hooks test"})

    def close(self) -> None:
        """Wait for what is left to send, for one attempt's time at most."""
        self._ended.set()
        with contextlib.suppress(queue.Full):
            self._messages.put_nowait(None)
        self._thread.join(self._settings.timeout_seconds)
        if self._thread.is_alive():
            self._failed("hooks", "the session ended before all was sent")

    # The thread

    def _put(self, facts: dict[str, Any]) -> None:
        body = redact(json.dumps(facts, allow_nan=False), self._secrets).encode()
        try:
            self._messages.put_nowait(body)
        except queue.Full:
            self._failed("hooks", f"more than {WAITING} messages were waiting")

    def _send_all(self) -> None:
        while (body := self._messages.get()) is not None:
            for name, send in self._ways.items():
                self._send(name, send, body)

    def _send(self, name: str, send: Send, body: bytes) -> None:
        text = ""
        for attempt in range(ATTEMPTS):
            try:
                send(body, self._settings.timeout_seconds)
            except Exception as error:  # whatever a server, a name, a command may bring
                text = f"{type(error).__name__}: {error}"
            else:
                self.state = {**self.state, "sent": self.state["sent"] + 1}
                return
            if attempt < len(self._pauses):
                self._ended.wait(self._pauses[attempt])
        self._failed(name, text)

    def _failed(self, name: str, why: str) -> None:
        said = f"{name} at {_now()}: {redact(one_line(why, 300), self._secrets)}"
        self.state = {**self.state, "failed": self.state["failed"] + 1, "last_error": said}


def message(name: str, stored: StoredEvent, history: History, folder: Path) -> dict[str, Any]:
    """What is told of `stored`, the last event of `history`."""
    facts, event = _facts(name, history, folder), stored.event
    facts |= {"events": stored.seq, "head": stored.hash}
    match event:
        case Decided() | Quarantined():
            facts["experiment"] = event.number
            facts["val_bpb"] = history.entries[event.number].experiment.val_bpb
            facts["gain"] = -event.difference if event.difference is not None else None
            facts["reason"] = one_line(event.reason, 500)
        case Stopped():
            facts |= {"reason": one_line(event.reason, 500), "finished": event.finished}
        case _:
            pass
    return facts


def _facts(name: str, history: History, folder: Path) -> dict[str, Any]:
    best, baseline = history.incumbent.experiment, history.baseline.experiment
    return {
        "study": str(folder),
        "event": name,
        "time": _now(),
        "host": socket.gethostname(),
        "strategy": history.config.strategy.name,
        "experiment": None,
        "val_bpb": best.val_bpb,
        "gain": None,
        "reason": "",
        "best": best.number,
        "best_val_bpb": best.val_bpb,
        "baseline_val_bpb": baseline.val_bpb,
        "done": sum(entry.verdict is not None for entry in history.contenders),
        "planned": history.planned,
        "finished": False,
        "incidents": incidents_object(history.incidents, last=3),
        "events": history.seq,
        "head": history.head,
    }


def _name_of(event: Event) -> str | None:
    match event:
        case Decided(verdict=Verdict.KEEP, number=number) if number > 0:
            return "keep"
        case Quarantined():
            return "quarantine"
        case Stopped():
            return "error" if event.failed else "incidents" if event.incidents else "stop"
        case _:
            return None


def _resolved(url: str) -> str:
    """The address itself, where `url` names an environment variable."""
    if not url.startswith("$"):
        return url
    found = os.environ.get(url[1:].strip("{}"), "")
    if not found.startswith(("http://", "https://")):
        raise ConfigurationError(f"hooks.url: {url} holds no http(s) address.", fix="Set that variable, or unset it.")
    return found


def _secret_parts(settings: HooksConfig) -> tuple[str, ...]:
    """An address that a variable holds is a secret: whoever has it can post."""
    named = settings.url is not None and settings.url.startswith("$")
    return (_resolved(settings.url),) if named and settings.url is not None else ()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


def _post(url: str, body: bytes, seconds: float) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds):
        pass  # the answer's status is all that is asked of it; its body is not read


def _within(seconds: float, do: Callable[[], None]) -> None:
    """`do`, or `TimeoutError`: a server that trickles would outlast a timeout of its socket. It is then left to itself."""
    outcome: list[Exception | None] = []

    def attempt() -> None:
        try:
            do()
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _run(command: list[str], body: bytes, seconds: float) -> None:
    """The command with `body` on its standard input; it and what it started end with the time. Raises `OSError`."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    began = time.monotonic()
    try:
        process.communicate(body, timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise TimeoutError(f"{command[0]} took longer than {time.monotonic() - began:.0f} s") from None
    if process.returncode:
        raise OSError(f"{command[0]} ended with status {process.returncode}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
