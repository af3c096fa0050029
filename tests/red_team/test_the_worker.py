"""What code that has taken over the worker can do: run in the worker's own box, in the place of the worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxresearch.execution.base import RunRequest
from jaxresearch.execution.housing import WorkerHouse
from jaxresearch.execution.process import WorkerProcess
from jaxresearch.experiment import CompletedRun
from jaxresearch.sandbox.confinement import confined
from jaxresearch.sandbox.selftest import examine
from jaxresearch.sandbox.worker_tier import WorkerTier
from tests.laboratory import ROOT, Laboratory

SECRET = "sk-planted-secret-4712"
HOSTILE = """
import asyncio, json, os, pathlib, socket, sys, threading
question = json.loads(sys.argv[1])
def attempt(action):
    try:
        return action()
    except BaseException as error:
        return type(error).__name__
def names(path): return sorted(os.listdir(path))
def read(path): return len(pathlib.Path(path).read_bytes())
def write(path): pathlib.Path(path).write_bytes(b"x"); return "written"
def connect(kind, address, family=socket.AF_INET):
    with socket.socket(family, kind) as client:
        client.settimeout(1); client.connect(address); client.send(b"x")
    return "sent"
def wake():
    loop, woken = asyncio.new_event_loop(), []
    def stop(): woken.append(True); loop.stop()
    threading.Timer(0.1, loop.call_soon_threadsafe, [stop]).start()
    loop.call_later(30, loop.stop); loop.run_forever()
    return "woken" if woken else "never woken"
def send(kind, address):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    one.sendto(b"x", address); return "sent"
found = {
    "loop": attempt(wake),
    "datagram": attempt(lambda: send(socket.SOCK_DGRAM, question["socket"])),
    "addressed": attempt(lambda: send(socket.SOCK_STREAM, question["socket"])),
    "keys": [name for name, value in os.environ.items() if question["secret"] in value],
    "parent's keys": attempt(lambda: question["secret"] in open(f"/proc/{question['parent']}/environ").read()),
    "train": attempt(lambda: read(question["train"])),
    "rows": attempt(lambda: write(question["rows"] + "/validation-9.npy")),
    "sealed": attempt(lambda: names(question["sealed"])),
    "ledger": attempt(lambda: read(question["ledger"])),
    "home": attempt(lambda: read(question["home"])),
    "repository": [n for n in (attempt(lambda p=p: read(p)) for p in question["repository"]) if isinstance(n, int)],
    "laboratory": attempt(lambda: write(question["package"] + "/evil.py")),
    "inbox": attempt(lambda: write(question["inbox"] + "/evil")),
    "programs": attempt(lambda: write(question["programs"] + "/draft")),
    "compilations": attempt(lambda: write(question["compilations"] + "/draft")),
    "scratch": attempt(lambda: write(os.environ["TMPDIR"] + "/draft")),
    "host": [p for p in ("/escape", "/etc/evil", "/var/tmp/evil", "/usr/evil", "/home/evil")
             if attempt(lambda p=p: write(p)) == "written"],
    "tcp": attempt(lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", question["port"]))),
    "unix": attempt(lambda: connect(socket.SOCK_STREAM, question["socket"], socket.AF_UNIX)),
    "kill": attempt(lambda: os.kill(question["parent"], 0)),
    "fork": attempt(os.fork),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def tier(request, runner) -> str:
    report = runner.run(examine(request.param))
    if not report.works:
        pytest.skip(f"{request.param}: {report.detail}")
    return request.param


def take_over(laboratory: Laboratory, tier, folder: Path, *, sealed: bool = False) -> dict:
    """What HOSTILE found in the box of the laboratory's worker."""
    settings = laboratory.executor._settings
    house = WorkerHouse(settings)
    house.tier = WorkerTier(tier)
    house._prepare(sealed)
    (laboratory.root / "ledger.sqlite").write_text(SECRET)
    (folder / "netrc").write_text(SECRET)
    path = folder / "socket"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(path))
        for server in (tcp, unix):
            server.listen()
        question = {
            "secret": SECRET,
            "parent": os.getpid(),
            "train": str(next((settings.corpus / "train").iterdir())),
            "rows": str(settings.corpus / "rows"),
            "sealed": str(settings.corpus / "sealed"),
            "ledger": str(laboratory.root / "ledger.sqlite"),
            "home": str(folder / "netrc"),
            "repository": [
                str(ROOT / name) for name in ("pyproject.toml", "tests/laboratory.py", "models/gpt.py", ".git")
            ],
            "package": str(ROOT / "jaxresearch"),
            "inbox": str(house.inbox),
            "programs": str(settings.programs),
            "compilations": str(settings.compilation_cache),
            "port": tcp.getsockname()[1],
            "socket": str(path),
        }
        command = [sys.executable, "-I", "-c", HOSTILE, json.dumps(question)]
        box = house._box(sealed)
        with confined(tier, box, command) as (boxed, descriptors):
            done = subprocess.run(
                boxed, env=dict(box.environment), pass_fds=descriptors, stdin=subprocess.DEVNULL, capture_output=True,
                check=False, cwd="/",
            )  # fmt: skip
    house.close()
    for name in (settings.programs / "draft", settings.compilation_cache / "draft"):
        name.unlink()
    assert done.returncode == 0, done.stderr.decode()[-500:]
    return json.loads(done.stdout)


def denied(answer: object) -> bool:
    return answer in ("PermissionError", "FileNotFoundError", "OSError", "ProcessLookupError", "ConnectionRefusedError")


def test_a_worker_that_was_taken_over_is_still_in_its_box(laboratory, tier, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    found = take_over(laboratory, tier, tmp_path)
    assert found["keys"] == []
    assert found["parent's keys"] is not True
    assert found["train"] > 0, "it reads what it must train on"
    assert [found[name] for name in ("programs", "compilations", "scratch")] == ["written"] * 3
    assert found["loop"] == "woken", "orbax writes checkpoints from an event loop"
    if tier == "landlock":
        assert found["datagram"] == found["addressed"] == "PermissionError"
    for name in (
        "datagram",
        "addressed",
        "sealed",
        "rows",
        "ledger",
        "home",
        "laboratory",
        "inbox",
        "tcp",
        "unix",
        "kill",
        "fork",
    ):
        assert denied(found[name]), (name, found[name])
    assert found["repository"] == []
    assert found["host"] == []


def test_the_sealed_split_is_there_for_a_confirmation_and_cannot_be_changed(laboratory, tier, tmp_path):
    assert take_over(laboratory, tier, tmp_path, sealed=True)["sealed"] == ["rows", "test"]


def test_the_laboratorys_own_worker_starts_in_each_tier(laboratory, tier, runner):
    """In each tier, and of this clone; `take_over` starts something else in the box."""
    house = WorkerHouse(laboratory.executor._settings)
    house.tier = WorkerTier(tier)
    worker = runner.run(house.start(sealed=False))
    assert house.tier.tier == tier, house.tier.reason
    assert worker.facts["platform"] == "cpu"
    runner.run(worker.kill())
    house.close()


def test_an_ordinary_worker_is_replaced_before_the_sealed_split_is_read(laboratory, baseline):
    """And after it: the one that has seen it runs nothing else."""
    started: list[bool] = []
    start, house = laboratory.executor._house.start, laboratory.executor._house

    async def watched(*, sealed: bool) -> WorkerProcess:
        started.append(sealed)
        return await start(sealed=sealed)

    def request(split) -> RunRequest:
        return laboratory.request(baseline, budget="2steps", split=split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house, "start", watched)
        for split in ("validation", "test", "test", "validation"):
            outcome = laboratory.runner.run(laboratory.executor.run(request(split), lambda _: None))
            assert isinstance(outcome, CompletedRun)
            assert outcome.worker == str(house.tier)
    assert started[-2:] == [True, False]


def test_a_worker_that_does_not_start_in_its_box_runs_without_and_every_run_says_why(laboratory, runner, monkeypatch):
    house = WorkerHouse(laboratory.executor._settings)
    honest = house._box

    def without_python(sealed):
        from dataclasses import replace

        return replace(honest(sealed), environment={"PYTHONHOME": "/nowhere"})

    monkeypatch.setattr(house, "_box", without_python)
    if runner.run(examine("bubblewrap")).works or runner.run(examine("landlock")).works:
        worker = runner.run(house.start(sealed=False))
        assert worker.facts["platform"] == "cpu"
        assert str(house.tier).startswith("unsandboxed (bubblewrap: the worker did not start: ") or str(
            house.tier
        ).startswith("unsandboxed (landlock: ")
        runner.run(worker.kill())
    house.close()
    strict = WorkerHouse(laboratory.executor._settings, require="landlock")
    monkeypatch.setattr(strict, "_box", without_python)
    from jaxresearch.errors import JaxresearchError

    with pytest.raises(JaxresearchError, match=r"sandbox\.require: landlock is required, and the worker"):
        runner.run(strict.start(sealed=False))
    strict.close()
