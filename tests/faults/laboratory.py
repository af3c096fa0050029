"""The real laboratory, small: workers and sandboxes are killed, programs, evaluations and checkpoints are harmed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxresearch.data import Corpus, prepare
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.execution.process import WorkerProcess
from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.sandbox import Sandbox, choose_sandbox
from jaxresearch.strategy import make_strategy
from jaxresearch.study.history import History
from jaxresearch.study.models import Models
from jaxresearch.study.study import Study
from tests.data.texts import make_texts, write_jsonl
from tests.faults.lives import FaultError
from tests.laboratory import BASELINE, VOCAB_SIZE, tiny_config

POINTS = ("sandbox.trace", "worker.idle", "worker.verify", "worker.compile", "worker.train", "worker.score")
"""What is killed, and when. `worker.train` is in the middle of a run; `worker.idle` between two."""
_EXPERIMENTS = 2


@dataclass
class Killer:
    """Kills at the `nth` passing of `point`, once."""

    point: str = ""
    nth: int = 1
    passed: Counter[str] = field(default_factory=Counter)
    killed: int = 0

    def passing(self, point: str, victim: int) -> None:
        self.passed[point] += 1
        if point == self.point and self.passed[point] == self.nth:
            self.killed += 1
            os.kill(victim, signal.SIGKILL)


class MortalExecutor(LocalExecutor):
    """The executor of a study, with a killer."""

    killer: Killer

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        if self._worker is not None:
            self.killer.passing("worker.idle", self._worker._process.pid)

        def watch(progress: RunProgress) -> None:
            if self._worker is not None:
                self.killer.passing(f"worker.{progress.stage}", self._worker._process.pid)
            on_progress(progress)

        return await super().run(request, watch)


class RealArena:
    """One text, one sandbox, and the study that nobody disturbed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        os.environ["JAXRESEARCH_CACHE"] = str(root / "cache")
        (root / "cache").mkdir()
        self._text = write_jsonl(root / "tiny.jsonl", make_texts(400))
        self.config = tiny_config(experiments=_EXPERIMENTS, budget="40steps", strategy={"name": "greedy"})
        self.sandbox: Sandbox = asyncio.run(choose_sandbox())
        self.whole, killer = self.study("whole", Killer())
        self.passed = killer.passed
        never = [point for point in POINTS if not self.passed[point]]
        if never:
            raise FaultError(f"points that no study passes: {', '.join(never)}")

    def study(self, name: str, killer: Killer, until: int | None = None) -> tuple[list[Any], Killer]:
        """A study in the folder `name`, new or gone on with, to its end; what it came to. Raises as a session does.

        until: stop after so many experiments.
        """
        folder = self.root / name
        corpus: Corpus = prepare(self._text, VOCAB_SIZE, self.root / "cache")
        corpus.pack(self.config.context)
        facts = {"corpus": corpus.fingerprint, "tokenizer": corpus.tokenizer_fingerprint}
        if not folder.exists():
            Study.create(folder, self.config, BASELINE, **facts).close()
        study = Study.open(folder)
        study.check_corpus(**facts)
        layout = study.layout
        executor = MortalExecutor.create(
            self.config, corpus, self.sandbox, programs=layout.programs, runs=layout.runs, checkpoint_seconds=60.0
        )
        executor.killer = killer

        def pause(history: History) -> str | None:
            return None if until is None or len(history.contenders) < until else "far enough"

        async def drive() -> None:
            try:
                strategy = make_strategy("greedy", {})
                await study.run(executor, strategy, Models("builtin", self.config.llm).of_rounds(study), pause=pause)
            finally:
                await executor.close()

        try:
            with _hooks(killer):
                asyncio.run(drive())
            study.verify()
            return _essence(study), killer
        finally:
            study.close()

    def killed_at(self, point: str, nth: int) -> None:
        """A worker or a sandbox is killed: the study goes on by itself, to the same end."""
        found, killer = self.study(f"killed-{point}", Killer(point, nth))
        if not killer.killed:
            raise FaultError(f"nothing was killed at {point}")
        self._judge(found, f"killed at {point}")

    def harmed_between_sessions(self, name: str, pattern: str, harm: Callable[[Path], Any]) -> str:
        """Files change while nobody drives. The study stops with one line and goes on once they are back, or goes on."""
        folder, backup = self.root / name, self.root / f"{name}-backup"
        self.study(name, Killer(), until=1)
        shutil.copytree(folder, backup)
        harmed = [*folder.glob(pattern), *self.root.glob(pattern)]
        if not harmed:
            raise FaultError(f"{name}: there is no {pattern}")
        for path in harmed:
            path.chmod(0o644)
            harm(path)
        try:
            found, _ = self.study(name, Killer())
            line = "went on"
        except JaxresearchError as error:
            line = str(error)
            if "\n" in line:
                raise FaultError(f"{name}: not one clear line: {line!r}") from None
            shutil.rmtree(folder)
            shutil.move(backup, folder)
            found, _ = self.study(name, Killer())
        self._judge(found, f"{name}: {line}")
        return f"{name}: {line}"

    def _judge(self, found: list[Any], what: str) -> None:
        if found != self.whole:
            raise FaultError(f"{what}: it ended as {found}, not as {self.whole}")


def spoil(path: Path) -> None:
    """A bit of the last byte, and one in the middle, become another."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM = {
    "a program is damaged": ("programs/*/train_step_0.mlirbc", spoil),
    "programs are lost": ("programs/*/manifest.json", Path.unlink),
    "an evaluation is cut": ("runs/*/nats.npy", lambda path: path.write_bytes(path.read_bytes()[:-4])),
    "an evaluation is damaged": ("runs/*/nats.npy", spoil),
    "a checkpoint is damaged": ("runs/*/checkpoints/*/manifest.ocdbt", spoil),
    "a corpus is damaged": ("cache/tiny-*/train/tokens-*.npy", spoil),
    "its validation text is cut": ("cache/tiny-*/validation/tokens-*.npy", lambda path: os.truncate(path, 99)),
    "its tokenizer is damaged": ("cache/tiny-*/tokenizer.json", spoil),
    "its lengths are damaged": ("cache/tiny-*/byte_lengths.npy", spoil),
    "its rows are damaged": ("cache/tiny-*/rows/[tv]*.npy", spoil),
    "its rows are cut": ("cache/tiny-*/rows/[tv]*.npy", lambda path: os.truncate(path, 300)),
}
"""What is done between two sessions: to which files, of the study or of the cache, and what."""


def _essence(study: Study) -> list[Any]:
    experiments = [
        (each.parent, each.program, each.verdict, each.reason, [_of_run(run) for run in each.runs])
        for each in study.history.experiments
    ]
    return [experiments, study.history.incumbent_number]


def _of_run(run: RunOutcome) -> tuple[Any, ...]:
    if isinstance(run, CompletedRun):
        return (run.identity, run.seed, run.val_bpb, run.loss, run.steps, run.tokens, run.flops)
    return (run.identity, run.seed, run.verdict, run.reason)


@contextmanager
def _hooks(killer: Killer) -> Iterator[None]:
    """Sandboxes and verifiers are started by functions of ours: there they are met."""
    from jaxresearch.sandbox import isolation

    feed, ask = isolation._feed, WorkerProcess.ask

    async def feeding(process: asyncio.subprocess.Process, data: bytes) -> None:
        killer.passing("sandbox.trace", process.pid)
        await feed(process, data)

    async def asking(worker: WorkerProcess, do: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        if do == "verify":
            killer.passing("worker.verify", worker._process.pid)
        return await ask(worker, do, *arguments, **options)

    isolation._feed, WorkerProcess.ask = feeding, asking
    try:
        yield
    finally:
        isolation._feed, WorkerProcess.ask = feed, ask
