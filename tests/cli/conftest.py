"""The command line on a tiny laboratory: one configuration file, and commands as plain calls."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaxresearch.cli import main


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as the one JSON object that it must be."""
        return json.loads(self.stdout)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`jaxresearch ARGUMENTS` in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def process(cache_root: Path) -> Callable[..., subprocess.Popen]:
    """`jaxresearch ARGUMENTS` in a process of its own, in a session of its own."""

    def start(*arguments: object, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxresearch", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAXRESEARCH_CACHE": str(cache_root), **environment},
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def finished(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three experiments with the builtin model, run to its end: once, whatever number of processes test."""
    own = tmp_path_factory.mktemp("studies") / "finished"
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all the processes
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished").is_dir():
            with pytest.raises(SystemExit) as ended:
                main(["run", "--config", str(config_file), "--study", str(shared / "finished.new"), "--quiet"])
            assert not ended.value.code
            (shared / "finished.new").rename(shared / "finished")
    shutil.copytree(shared / "finished", own, symlinks=True)
    return own
