"""Ahead: does early what the driver will ask its executor for; the ledger is that of a driver that never looks ahead.

As a processor does: many experiments of a round are under way, and they retire in order. The driver works on one after
the other. Meanwhile `foresight` says what those behind it will need, and it is begun here. When the driver asks for the
very same, it takes over that piece of work; a request that differs in anything (a keep in between changed what a run is
audited against) is done anew. So speculation, and the order in which runs end, can cost time and never change a verdict.

What was trained and not needed is recorded as `RunDiscarded`, for it was paid for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxresearch.budget import Budget
from jaxresearch.execution.base import Executor, RunProgress, RunRequest, TracedCandidate, TraceFailure, workers_of
from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.proposal import Candidate
from jaxresearch.study.costs import accelerator_seconds
from jaxresearch.study.events import RunDiscarded, TraceOutcome
from jaxresearch.study.foresight import Foresight, RunNeed, TraceNeed, run_key, trace_key
from jaxresearch.study.history import History
from jaxresearch.study.identity import candidate_fingerprint
from jaxresearch.study.journal import Journal
from jaxresearch.study.stopping import Stop

CANCEL_SECONDS = 15.0
"""How long cancelled work may take to tidy up."""


@dataclass(eq=False)
class _Work:
    """One trace or run that was begun. number: of the experiment that needs it. claimed: the driver has asked for it.

    runner: whose run it is. began: when the executor first spoke of it, by the monotonic clock.
    """

    number: int
    task: asyncio.Task[Any]
    claimed: bool
    request: RunRequest | None = None
    runner: int = 0
    began: float | None = None

    @property
    def going(self) -> bool:
        return not self.task.done()

    @property
    def result(self) -> TraceOutcome | RunOutcome | None:
        """None while there is none, and when our own side failed."""
        if self.going or self.task.cancelled() or self.task.exception() is not None:
            return None
        return self.task.result()


class Ahead:
    """An executor for the driver of one session, around the real one, which the driver's caller closes."""

    def __init__(self, executor: Executor, journal: Journal, foresight: Foresight, stop: Stop) -> None:
        self._executor, self._journal, self._foresight, self._stop = executor, journal, foresight, stop
        self._work: dict[str, _Work] = {}
        self._ending: dict[asyncio.Task[Any], str] = {}
        self._discarded: list[RunDiscarded] = []
        self._looking = False
        self._awaited = ""  # identity of the run that the driver waits to begin: nothing ahead of it may

    @property
    def workers(self) -> int:
        """How many runs may go on at once, at present: nodes of a cluster come and go."""
        return workers_of(self._executor)

    @property
    def identities(self) -> set[str]:
        """Of all runs that are under way, or done and not yet asked for."""
        held = {work.request.identity for work in self._work.values() if work.request is not None}
        return held | set(self._ending.values())

    def look(self) -> None:
        """To be called by the driver before each step, when the journal holds all that has come of the last one."""
        self._work = {key: work for key, work in self._work.items() if work.going or not work.claimed}
        self._looking = True
        self._plan()
        self._record()

    async def end(self) -> None:
        """Give up what is under way, and record what it cost."""
        self._looking = False
        for key in tuple(self._work):
            self._drop(key)
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=CANCEL_SECONDS)
        self._record()

    # What the driver asks for

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        key = trace_key(candidate_fingerprint(candidate))
        work = self._work.get(key)
        if work is not None and work.claimed:
            return await self._executor.trace(candidate)  # `check` may ask for the same sources twice
        if work is None:
            work = self._begin(key, _Work(0, asyncio.ensure_future(self._executor.trace(candidate)), claimed=True))
        return await self._claimed(work)

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        key = run_key(request)
        work = self._work.get(key)
        if work is None:
            self._awaited = request.identity
            try:
                await self._make_way(request)
                work = self._begin_run(key, request, on_progress, claimed=True)
            finally:
                self._awaited = ""
        return await self._claimed(work)

    async def close(self) -> None:
        await self.end()
        await self._executor.close()

    async def _claimed(self, work: _Work) -> Any:
        work.claimed = True
        self._plan()  # the worker that was kept free for this is in use now
        return await work.task

    async def _make_way(self, request: RunRequest) -> None:
        """Two runs of one identity would write the same files; and some runs must have the machine for themselves."""
        for key, work in tuple(self._work.items()):
            if work.request is not None and work.request.identity == request.identity:
                self._drop(key)
        while same := [task for task, identity in self._ending.items() if identity == request.identity]:
            await asyncio.wait(same)
        if not _overlaps(self._journal.history):
            while tracing := [work.task for work in self._work.values() if work.request is None and work.going]:
                await asyncio.wait(tracing)

    # What is done ahead of that

    def _plan(self) -> None:
        """Begin what is foreseen and drop what no longer is, as far as workers allow."""
        history, overlaps = self._journal.history, _overlaps(self._journal.history)
        if not self._looking or (self.workers == 1 and not overlaps):
            return
        waiting = sum(entry.verdict is None for entry in history.entries)
        known = {key: work.result for key, work in self._work.items() if work.result is not None}
        alone = waiting == 1 and (self.workers == 1 or history.pending is not history.baseline)
        needs = None if alone or waiting == 0 else self._foresight.needs(history, known)
        wanted = {need.key: need for need in needs.wanted} if needs is not None else {}
        unclear = needs.unclear if needs is not None else set()
        for key, work in tuple(self._work.items()):
            if not work.claimed and key not in wanted and work.number not in unclear:
                self._drop(key)
        if self._stop.requested:
            return
        for key, need in wanted.items():
            if key in self._work:
                continue
            match need:
                case TraceNeed() if self._may_trace(overlaps):
                    task = asyncio.ensure_future(self._executor.trace(need.candidate))
                    self._begin(key, _Work(need.number, task, claimed=False))
                case RunNeed() if self._may_run(need.request, overlaps):
                    self._begin_run(key, need.request, self._teller(need), need=need)
                case _:
                    pass

    def _may_trace(self, overlaps: bool) -> bool:
        going = [work for work in self._work.values() if work.going]
        if not overlaps and (self._ending or any(work.request is not None for work in going)):
            return False
        return sum(work.request is None and not work.claimed for work in going) < self.workers

    def _may_run(self, request: RunRequest, overlaps: bool) -> bool:
        going = [work for work in self._work.values() if work.going]
        if request.identity in self.identities or request.identity == self._awaited:
            return False
        if not overlaps and any(work.request is None for work in going):
            return False
        ahead = sum(work.request is not None and not work.claimed for work in going) + len(self._ending)
        return ahead < self.workers - 1  # what the driver asks for next finds a free one

    def _teller(self, need: RunNeed) -> Callable[[RunProgress], None]:
        return lambda progress: self._journal.reporter.on_progress(need.runner, need.request.seed, progress)

    # Work

    def _begin_run(
        self,
        key: str,
        request: RunRequest,
        on_progress: Callable[[RunProgress], None],
        *,
        claimed: bool = False,
        need: RunNeed | None = None,
    ) -> _Work:
        def note(progress: RunProgress) -> None:
            if work.began is None:
                work.began = time.monotonic()
            on_progress(progress)

        task = asyncio.ensure_future(self._executor.run(request, note))
        number, runner = (need.number, need.runner) if need is not None else (0, 0)
        work = _Work(number, task, claimed, request, runner)
        return self._begin(key, work)

    def _begin(self, key: str, work: _Work) -> _Work:
        self._work[key] = work
        work.task.add_done_callback(self._ended)
        return work

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ending.pop(task, None)
        if not task.cancelled():
            task.exception()  # seen; who asks for it gets it
        self._plan()

    def _drop(self, key: str) -> None:
        work = self._work.pop(key)
        if work.going:
            work.task.cancel()
            self._ending[work.task] = work.request.identity if work.request is not None else ""
        if work.request is None or work.claimed:
            return
        seconds = time.monotonic() - work.began if work.going and work.began is not None else 0.0
        if isinstance(outcome := work.result, CompletedRun):
            seconds = accelerator_seconds(outcome)
        elif outcome is not None:
            seconds = getattr(outcome, "total_seconds", 0.0)
        if seconds > 0 or work.began is not None:
            identity, seed = work.request.identity, work.request.seed
            self._discarded.append(
                RunDiscarded(number=work.runner, identity=identity, seed=seed, accelerator_seconds=seconds)
            )

    def _record(self) -> None:
        """Only between the driver's own events, never among them."""
        discarded, self._discarded = self._discarded, []
        if discarded:
            self._journal.record(*discarded)


def _overlaps(history: History) -> bool:
    """Whether other work may go on while a run trains: not where it would take time from a budget in seconds."""
    if Budget.parse(history.config.budget).unit != "seconds":
        return True
    runs = [run for run in history.baseline.experiment.runs if isinstance(run, CompletedRun)]
    return not runs or runs[0].device != "cpu"
