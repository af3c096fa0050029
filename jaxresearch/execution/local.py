"""LocalExecutor: traces in a sandbox and runs in one warm worker, both on this machine, and both at once if need be."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jaxresearch.config import LimitsConfig, StudyConfig
from jaxresearch.data import Corpus, default_cache_root, unigram_bpb
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import ExecutorLostError, RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.execution.hosts import hosts_here
from jaxresearch.execution.housing import WorkerHouse
from jaxresearch.execution.known_traces import KnownTraces
from jaxresearch.execution.pins import Pin
from jaxresearch.execution.process import (
    StageTimeoutError,
    WorkerDiedError,
    WorkerFailedError,
    WorkerOutgrownError,
    WorkerProcess,
)
from jaxresearch.execution.worker import VerifyRequest, WorkerSettings
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.program.program import Manifest
from jaxresearch.program.tracers import Tracers
from jaxresearch.program.tracing import TracedModules, trace
from jaxresearch.proposal import Candidate
from jaxresearch.sandbox import Sandbox
from jaxresearch.text import one_line
from jaxresearch.training.seal import checkpoint_folder, sealed

_GRACE_SECONDS = 20.0
"""How long after its own wall cap a training may take to say so before its worker is killed."""
_FROM_THE_SECOND = 2
"""Who has traced, and runs twice, will trace again. The one run of `train` has no successor."""
MAX_DEATHS = 2
"""Workers that one run may cost before it is the program's fault in any case."""
_DOING = {"compile": "compiling", "train": "training", "score": "scoring"}
_OUTCOME = TypeAdapter(RunOutcome)


def worker_settings(config: StudyConfig, corpus: Corpus, *, programs: Path, runs: Path) -> WorkerSettings:
    """What a worker must know to do runs as `config` says."""
    return WorkerSettings(
        corpus=corpus.folder,
        programs=programs,
        runs=runs,
        compilation_cache=default_cache_root() / "xla",
        context=config.context,
        vocab_size=corpus.vocab_size,
        evaluation_tokens=config.evaluation.tokens,
        evaluation_batch=config.evaluation.batch,
        unigram_bpb=unigram_bpb(corpus, config.context),
        threads=config.execution.threads,
        devices=config.execution.devices,
        fsdp=config.execution.fsdp,
        attention=config.execution.attention,
        program_bytes=config.limits.program_bytes,
        constant_bytes=config.limits.constant_bytes,
        parameters=config.limits.parameters,
        attribute_bytes=config.limits.attribute_bytes,
    )


class LocalExecutor:
    """Does one run at a time. The worker is replaced after a crash, a kill, a leak, or many programs.

    Candidates may be traced meanwhile. While the worker trains, their programs are verified by another one, on the CPU.
    sandbox: None for an executor that is only asked to run.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        limits: LimitsConfig,
        sandbox: Sandbox | None,
        keep_awake: int = 32,
        require: str | None = None,
        parting_seconds: float = 0.0,
    ) -> None:
        self._settings, self._limits, self._sandbox, self._keep_awake = settings, limits, sandbox, keep_awake
        self._house = WorkerHouse(settings, require=require, network=settings.hosts is not None)
        self._parting_seconds = parting_seconds if settings.checkpoint_seconds is not None else 0.0
        self._worker: WorkerProcess | None = None
        self._worker_is_sealed = False
        self._lock = asyncio.Lock()
        self._aside: WorkerProcess | None = None
        self._aside_lock = asyncio.Lock()
        self._running, self._begun, self._has_traced = 0, 0, False
        self._platform = ""
        self._known = KnownTraces()
        self._tracers = None if sandbox is None else Tracers(sandbox, self._house.inbox)
        self._is_alone = True

    @classmethod
    def create(
        cls,
        config: StudyConfig,
        corpus: Corpus,
        sandbox: Sandbox,
        *,
        programs: Path,
        runs: Path,
        checkpoint_seconds: float | None = None,
        pin: Pin = Pin(),  # noqa: B008 - it is frozen
    ) -> LocalExecutor:
        """An executor that stores programs and evaluations below the given folders, alone or leading other hosts.

        checkpoint_seconds: of training between two checkpoints; None for none. The folders must then be one driver's.
        pin: what the worker has for itself, beside others on this machine.
        """
        settings = worker_settings(config, corpus, programs=programs, runs=runs)
        facts = {
            "checkpoint_seconds": checkpoint_seconds,
            "corpus_config": config.corpus,
            "hosts": hosts_here(),
            "pin": pin,
        }
        settings = settings.model_copy(update=facts)
        keep_awake = config.execution.keep_awake_programs
        return cls(
            settings,
            config.limits,
            sandbox,
            keep_awake,
            require=config.sandbox.require,
            parting_seconds=config.execution.saving_seconds,
        )

    def share_with(self, other: LocalExecutor) -> None:
        """Know the traces of `other`, which is beside this one on one machine, and the sandbox tier that it found."""
        self._known = other._known
        self._house.share_with(other._house)
        self._is_alone = other._is_alone = False

    def knows(self, program: str) -> bool:
        """Whether the worker has run that program, so that it need not be compiled."""
        return self._worker is not None and self._worker.alive and program in self._worker.programs

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        known = self._known.find(candidate)
        if known is not None:
            return known
        assert self._sandbox is not None, "an executor without a sandbox traces nothing"
        assert self._tracers is not None
        self._has_traced = True
        if not self._running or not self._platform:
            await self._ready_worker()
        traced = await trace(
            candidate,
            laboratory={"vocab_size": self._settings.vocab_size, "context": self._settings.context},
            evaluation_batch=self._settings.evaluation_batch,
            platform=self._platform,
            tracers=self._tracers,
            limits=self._limits,
        )
        if isinstance(traced, TraceFailure):
            return traced
        with tempfile.TemporaryDirectory(prefix="trace-", dir=self._house.inbox, ignore_cleanup_errors=True) as scratch:
            began = time.monotonic()
            result = await self._verify(traced, self._sandbox.tier, Path(scratch))
        if isinstance(result, TracedCandidate):
            result = result.model_copy(update={"verify_seconds": time.monotonic() - began})
            self._known.remember(candidate, result)
        return result

    async def _verify(self, traced: TracedModules, tier: str, scratch: Path) -> TracedCandidate | TraceFailure:
        for index, blob in enumerate(traced.blobs):
            (scratch / str(index)).write_bytes(blob)
        request = VerifyRequest(
            folder=scratch,
            count=len(traced.blobs),
            traced=tuple(sorted(traced.values)),
            phases=traced.phases,
            leaves=traced.leaves,
            metrics=traced.metrics,
        )

        def refused(verdict: Verdict, reason: str) -> TraceFailure:
            return TraceFailure(verdict=verdict, reason=one_line(reason, 500), trace_seconds=traced.seconds)

        limits = {"verify": self._limits.trace_seconds}
        try:
            answer = await self._ask_to_verify(request, limits)
        except StageTimeoutError as error:
            return refused(Verdict.TIMEOUT, str(error))
        except WorkerOutgrownError as error:
            return refused(Verdict.INVALID, f"out of memory while verifying: {error}")
        except WorkerDiedError as error:
            return refused(Verdict.INVALID, f"the verifier died on the program ({error})")
        except WorkerFailedError as error:
            return refused(Verdict.INFRASTRUCTURE, str(error))
        if "refused" in answer:
            return refused(Verdict.INVALID, answer["refused"])
        manifest = Manifest.model_validate(answer["manifest"])
        return TracedCandidate(
            program=manifest.program,
            traced=traced.values,
            hyperparameters=traced.hyperparameters,
            phases=manifest.phases,
            step_flops=manifest.step_flops,
            parameters=manifest.parameters,
            sandbox=tier,
            trace_seconds=traced.seconds,
            program_bytes=sum(map(len, traced.blobs)),
        )

    async def _ask_to_verify(self, request: VerifyRequest, limits: dict[str, float]) -> dict[str, Any]:
        """A worker's answer. When one is killed, or outgrows its memory after it ran programs, another is asked, once."""
        facts, held_others = request.model_dump(mode="json"), False
        try:
            async with self._verifier() as worker:
                held_others = bool(worker.programs)
                return await worker.ask("verify", facts, limits=limits, first_stage="verify")
        except WorkerDiedError as death:
            if not (death.killed or (held_others and isinstance(death, WorkerOutgrownError))):
                raise
        async with self._verifier() as worker:
            return await worker.ask("verify", facts, limits=limits, first_stage="verify")

    @contextlib.asynccontextmanager
    async def _verifier(self) -> AsyncIterator[WorkerProcess]:
        if not self._running:
            async with self._lock:
                yield await self._awake()
            return
        async with self._aside_lock:
            if self._aside is not None and (not self._aside.alive or self._aside.leaks):
                await self._aside.kill()
                self._aside = None
            if self._aside is None:
                self._aside = await self._house.start(sealed=False, verifies_for=self._platform)
            yield self._aside

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        limits = {
            "compile": self._limits.compile_seconds,
            "train": request.wall_cap_seconds + self._limits.compile_seconds + _GRACE_SECONDS,
            "score": self._limits.evaluation_seconds,
        }
        stage, began = "compile", None

        def watch(progress: RunProgress) -> None:
            nonlocal stage, began
            stage, began = progress.stage, time.monotonic() if began is None else began
            if stage == "score":
                self._look_ahead()
            on_progress(progress)

        def failed(verdict: Verdict, reason: str) -> FailedRun:
            return FailedRun(
                identity=request.identity,
                verdict=verdict,
                reason=reason,
                seed=request.seed,
                program=request.program,
                total_seconds=0.0 if began is None else time.monotonic() - began,  # it is paid for all the same
            )

        try:
            await self._house.provide_rows(request.program)
        except JaxresearchError as error:
            raise ExecutorLostError(error.message, fix=error.fix) from None  # the cache's fault, and no candidate's
        self._running, self._begun = self._running + 1, self._begun + 1
        try:
            answer = await self._ask_to_run(request, limits, watch)
        except StageTimeoutError as error:
            return failed(Verdict.TIMEOUT, f"{error}; the worker was killed")
        except WorkerOutgrownError as error:
            return failed(Verdict.CRASH, f"out of memory while {_DOING[stage]}: {error}")
        except WorkerDiedError as error:
            return failed(Verdict.CRASH, f"the worker died while it did {stage}: {error}")
        except WorkerFailedError as error:
            return failed(Verdict.INFRASTRUCTURE, str(error))
        finally:
            self._running -= 1
        outcome = _OUTCOME.validate_python(answer)
        if isinstance(outcome, CompletedRun):
            return outcome.model_copy(update={"worker": str(self._house.tier or "")})
        return outcome

    def _look_ahead(self) -> None:
        """Start the next candidate's tracer while the run at hand is scored: its training takes no time from us then, and
        its budget none from it. Beside workers that train on the same processor it waits until it is needed."""
        if self._tracers is None or not self._has_traced or self._begun < _FROM_THE_SECOND:
            return
        if self._is_alone or self._platform != "cpu":
            self._tracers.expect_another()

    async def _ask_to_run(
        self, request: RunRequest, limits: dict[str, float], watch: Callable[[RunProgress], None]
    ) -> dict[str, Any]:
        """A worker's answer. One that was dead before it began is no fault of the program: another is asked.

        Nor need it be the program's fault when a worker dies that had come as far as a new checkpoint (another goes on
        from there), that somebody killed, or that outgrew its memory after it had run others (another begins again, once).
        """
        begun, deaths = False, 0
        folder = checkpoint_folder(self._settings.runs, request.identity)

        def note(progress: RunProgress) -> None:
            nonlocal begun
            begun = True
            watch(progress)

        async with self._lock:
            while True:
                # under the lock: the run before may have cost the worker its life
                worker = await self._awake(sealed=request.split == "test")
                held_others = bool(worker.programs - {request.program})
                worker.programs.add(request.program)
                before = sealed(folder)
                try:
                    return await worker.ask(
                        "run",
                        request.model_dump(),
                        limits=limits,
                        first_stage="compile",
                        on_progress=note,
                        parting_seconds=self._parting_seconds,
                    )
                except WorkerDiedError as death:
                    deaths += 1
                    got_further = max(sealed(folder), default=0) > max(before, default=0)
                    not_its_own = death.killed or (held_others and isinstance(death, WorkerOutgrownError))
                    excused = got_further or (not_its_own and deaths == 1)
                    if deaths > MAX_DEATHS or (begun and not excused):
                        raise
                    begun = False

    async def _ready_worker(self) -> WorkerProcess:
        async with self._lock:
            return await self._awake()

    async def _awake(self, *, sealed: bool = False) -> WorkerProcess:
        """The worker, or a fresh one. The caller holds the lock. sealed: one that may read the sealed test split."""
        if self._worker is not None and (
            not self._worker.alive
            or self._worker.leaks
            or len(self._worker.programs) >= self._keep_awake
            or self._worker_is_sealed != sealed
        ):
            await self._worker.kill()
            self._worker = None
        if self._worker is None:
            self._worker = await self._house.start(sealed=sealed)
            self._worker_is_sealed = sealed
            self._platform = self._worker.facts["platform"]
        return self._worker

    async def facts(self) -> dict[str, str | int]:
        """device, platform, threads and jax of the worker."""
        return (await self._ready_worker()).facts

    async def close(self) -> None:
        if self._worker is not None:
            await (self._worker.kill() if self._settings.hosts is None else self._worker.end())
            self._worker = None
        if self._aside is not None:
            await self._aside.kill()
            self._aside = None
        if self._tracers is not None:
            await self._tracers.close()
        self._house.close()
