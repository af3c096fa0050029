"""SharedRuns: an executor that trains an identical run once, whichever arm asks for it. Every arm is charged for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from jaxresearch.execution.base import Executor, RunProgress, RunRequest, TracedCandidate, TraceFailure, workers_of
from jaxresearch.experiment import FailedRun, RunOutcome, Verdict
from jaxresearch.files import write_whole
from jaxresearch.proposal import Candidate

_OUTCOME = TypeAdapter(RunOutcome)
_PASSING = (Verdict.INFRASTRUCTURE, Verdict.TIMEOUT)


class SharedRuns:
    """Outcomes lie in `folder`, one file a run, so that they survive the process.

    A run is shared where identity, reference, limits and audits are equal: against another incumbent the same score
    must pass another audit, and may be cut elsewhere. `least_gain_bpb` is no part of that: it moves with every pair,
    and says only from where on a gain is worth a closer look. What the infrastructure or the clock failed is done
    again. Outcomes keep their seconds, so that a ledger that records one is charged as if it had trained itself.
    """

    def __init__(self, executor: Executor, folder: Path) -> None:
        self._executor, self._folder = executor, folder
        self.trained = self.taken = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def workers(self) -> int:
        """How many runs may go on at once, at present: nodes of a cluster come and go."""
        return workers_of(self._executor)

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        return await self._executor.trace(candidate)

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        path = self._path(request)
        known = _read(path)
        if known is not None:
            self.taken += 1
            return known
        outcome = await self._executor.run(request, on_progress)
        self.trained += 1
        if (
            not (isinstance(outcome, FailedRun) and outcome.verdict in _PASSING)
            and outcome.identity == request.identity
        ):
            write_whole(
                path, json.dumps(outcome.model_dump(mode="json")).encode()
            )  # pydantic's own JSON loses infinities
        return outcome

    async def close(self) -> None:
        await self._executor.close()

    def _path(self, request: RunRequest) -> Path:
        asked = f"{request.identity} {request.reference} {request.cut_above} {request.thorough} {request.simpler}"
        key = hashlib.sha256(asked.encode()).hexdigest()
        return self._folder / f"{key}.json"


def _read(path: Path) -> RunOutcome | None:
    """What lies there; None without anything that can be read: then it is trained again."""
    try:
        return _OUTCOME.validate_python(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):  # ValueError: a disk that lost power, or that flipped a bit
        return None
