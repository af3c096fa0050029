"""Where runs happen: what the study asks of an executor, and what comes back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import RunOutcome, RunProgress, TraceFailure
from jaxresearch.proposal import Candidate, Hyperparameter

__all__ = [
    "Executor",
    "ExecutorLostError",
    "RunProgress",
    "RunRequest",
    "SampleRequest",
    "StateRequest",
    "TraceFailure",
    "TracedCandidate",
    "run_identity",
    "workers_of",
]


class TracedCandidate(BaseModel):
    """A candidate as a stored, verified program, with the values of its runtime inputs.

    program: "sha256:...", the name under which the program is stored.
    traced: the candidate's values of the hyperparameters that are runtime inputs.
    phases: (until_progress, batch, seq_len) of each training phase.
    step_flops: floating-point operations of one train step, for each phase; None where a loop's length is unknown.
    parameters: count that the laboratory read from the program's shapes.
    program_bytes: of its StableHLO; None where it was not counted.
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
    verify_seconds: float = 0.0
    flags: tuple[str, ...] = ()
    program_bytes: int | None = None


RunSplit = Literal["validation", "test"]
"""What a run is scored on: validation only, or the sealed test split as well."""


class RunRequest(BaseModel):
    """One run to do. Two requests with one `identity` are the same run.

    reference: identity of the incumbent's run with this seed. A score below that run's claims a gain, and is audited
    at high power, at the positions where the gain is claimed. None: the cheap audit only. reference_bpb: what that run
    scored, so that a stored evaluation that was changed is found; None: it is believed.
    wall_cap_seconds: training is cut and judged `timeout` after this long.
    keep_state: keep the final state of the run, for `sample`, should it come through.
    split: "test" scores the trained program on the sealed test split as well (`CompletedRun.test_bpb`). Nothing but
    `confirm` and a tournament's last step may ask for it; it is a part of the identity.
    thorough: audit a claimed gain at the highest power; asked for in quarantine.
    least_gain_bpb: below it no gain is kept; a smaller one is audited as if it were that.
    simpler: the experiment may be kept for being simpler, so a run without a gain is audited too.
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
    reference_bpb: float | None = None
    wall_cap_seconds: float
    trace_seconds: float = 0.0
    verify_seconds: float = 0.0
    sandbox: str = ""
    keep_state: bool = False
    split: RunSplit = "validation"
    probe_at: tuple[float, ...] = ()
    cut_above: tuple[tuple[float, float], ...] = ()
    thorough: bool = False
    simpler: bool = False
    least_gain_bpb: float = 0.0


class StateRequest(BaseModel):
    """A final state: that of the run `identity`, in the checkpoint of that name. Alone, it asks to score it again."""

    model_config = ConfigDict(frozen=True)

    identity: str
    program: str
    checkpoint: str


class SampleRequest(StateRequest):
    """Text to generate from a final state.

    temperature: 0 takes the likeliest token each time. top_k: only that many of the likeliest; None for all.
    """

    prompt: str
    tokens: int
    temperature: float
    top_k: int | None
    seed: int


class ExecutorLostError(JaxresearchError):
    """The place where runs happen is gone, such as a host of several. Trying again is of no use before it is back."""


class Executor(Protocol):
    """Traces candidates and runs programs. Failures of a candidate are values; exceptions are for failures of ours.

    Several calls may be under way at once. One that can do several runs at once says how many in `workers`.
    """

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure: ...

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome: ...

    async def close(self) -> None: ...


def workers_of(executor: Executor) -> int:
    """How many runs `executor` can do at once."""
    return getattr(executor, "workers", 1)


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
