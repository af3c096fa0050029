"""Where runs happen: what the study asks of an executor, and what comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from jaxresearch.experiment import RunOutcome, RunProgress, TraceFailure
from jaxresearch.proposal import Candidate, Hyperparameter

__all__ = ["Executor", "RunProgress", "RunRequest", "TraceFailure", "TracedCandidate", "run_identity"]


class TracedCandidate(BaseModel):
    """A candidate as a stored, verified program, with the values of its runtime inputs.

    program: "sha256:...", the name under which the program is stored.
    traced: the candidate's values of the hyperparameters that are runtime inputs.
    phases: (until_progress, batch, seq_len) of each training phase.
    step_flops: floating-point operations of one train step, for each phase; None where a loop's length is unknown.
    parameters: count that the laboratory read from the program's shapes.
    """

    model_config = ConfigDict(frozen=True)

    program: str
    traced: dict[str, float]
    hyperparameters: tuple[Hyperparameter, ...]
    phases: tuple[tuple[float, int, int], ...]
    step_flops: tuple[float | None, ...]
    parameters: int
    sandbox: str
    trace_seconds: float
    flags: tuple[str, ...] = ()


RunSplit = Literal["validation", "test"]
"""What a run is scored on: validation only, or the sealed test split as well."""


class RunRequest(BaseModel):
    """One run to do. Two requests with one `identity` are the same run.

    reference: identity of the incumbent's run with this seed. A score below that run's claims a gain, and is audited
    at high power, at the positions where the gain is claimed. None: the cheap audit only.
    wall_cap_seconds: training is cut and judged `timeout` after this long.
    split: "test" scores the trained program on the sealed test split as well (`CompletedRun.test_bpb`). Nothing but
    `confirm` and a tournament's last step may ask for it; it is a part of the identity.
    probe_at: shares of the budget after which the state is scored on the first validation batch. cut_above: (one of
    these shares, bits per byte): a run that scores above it there is cut, and judged `discard`.
    """

    model_config = ConfigDict(frozen=True)

    identity: str
    program: str
    traced: dict[str, float]
    seed: int
    budget: str
    reference: str | None = None
    wall_cap_seconds: float
    trace_seconds: float = 0.0
    sandbox: str = ""
    split: RunSplit = "validation"
    probe_at: tuple[float, ...] = ()
    cut_above: tuple[tuple[float, float], ...] = ()


class Executor(Protocol):
    """Traces candidates and runs programs. Failures of a candidate are values; exceptions are for failures of ours."""

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure: ...

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome: ...

    async def close(self) -> None: ...


def run_identity(
    *,
    program: str,
    traced: Mapping[str, float],
    phases: tuple[tuple[float, int, int], ...],
    budget: str,
    corpus: str,
    tokenizer: str,
    evaluation: str,
    seed: int,
    split: RunSplit = "validation",
) -> str:
    """The SHA-256 that names a run. Equal in everything that decides its score means equal in name."""
    facts = {
        "program": program,
        "traced": {name: float(value).hex() for name, value in sorted(traced.items())},
        "phases": phases,
        "budget": budget,
        "corpus": corpus,
        "tokenizer": tokenizer,
        "evaluation": evaluation,
        "seed": seed,
    }
    if split != "validation":
        facts["split"] = split
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
