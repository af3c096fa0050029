"""The events of a study. The ledger is a list of them, and all else about a study is a view of that list."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import TracedCandidate, TraceFailure
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.proposal import Proposal

SCHEMA_VERSION = 1
"""Of all events together. It grows when an event changes so that older code could not read it."""

TraceOutcome = TracedCandidate | TraceFailure


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudyCreated(_Event):
    """The first event: all that is fixed for the whole study.

    subject: fingerprint of the baseline's candidate. corpus, tokenizer: fingerprints that runs must have been made on.
    instructions: SHA-256 of program.md as it was.
    """

    kind: Literal["study_created"] = "study_created"
    config: StudyConfig
    subject: str
    corpus: str
    tokenizer: str
    instructions: str
    jaxresearch: str
    jax: str
    python: str


class SessionStarted(_Event):
    """A process began to drive the study. Time between sessions is not the study's."""

    kind: Literal["session_started"] = "session_started"
    pid: int
    host: str


class ProposalRequested(_Event):
    """A round began: the strategy is being asked. `seed` is the view's; `instructions` the SHA-256 of program.md."""

    kind: Literal["proposal_requested"] = "proposal_requested"
    round: int
    slots: int
    seed: int
    instructions: str


class LLMCalled(_Event):
    """One model request of a round with its reply or error, as the recording model wrote it. `ordinal` is from 0."""

    kind: Literal["llm_called"] = "llm_called"
    round: int
    ordinal: int
    record: dict[str, Any]


class Checked(_Event):
    """A strategy asked what is wrong with `proposal`; `finding` is the answer, None for nothing.

    tree: fingerprint of the candidate, empty when the proposal did not apply. trace: what tracing gave, if it was done.
    """

    kind: Literal["checked"] = "checked"
    round: int
    proposal: Proposal
    finding: str | None
    tree: str = ""
    trace: TraceOutcome | None = None


class ProposalFailed(_Event):
    """A round gave no proposal, or one that could not become an experiment."""

    kind: Literal["proposal_failed"] = "proposal_failed"
    round: int
    reason: str


class Proposed(_Event):
    """Experiment `number` exists from here on."""

    kind: Literal["proposed"] = "proposed"
    round: int
    number: int
    proposal: Proposal


class Traced(_Event):
    """The candidate of experiment `number` was committed and traced.

    tree: fingerprint of the candidate. It is empty when the proposal did not apply; the commit then repeats its parent.
    """

    kind: Literal["traced"] = "traced"
    number: int
    commit: str
    tree: str
    outcome: TraceOutcome


class RunStarted(_Event):
    """A run was handed to the executor. Without a `run_finished` after it, it was lost and is done again."""

    kind: Literal["run_started"] = "run_started"
    number: int
    identity: str
    seed: int


class RunFinished(_Event):
    """A run came back. `shared_from` is the experiment whose equal run was taken instead of training again."""

    kind: Literal["run_finished"] = "run_finished"
    number: int
    outcome: RunOutcome
    shared_from: int | None = None


class Decided(_Event):
    """The verdict on experiment `number`, with its reason in words.

    incumbent: the experiment it was compared with. difference: mean paired difference in bits per byte, below zero is
    better. p_value: of the acceptance test, where one was made. same_as: the experiment that a duplicate repeats.
    """

    kind: Literal["decided"] = "decided"
    number: int
    verdict: Verdict
    reason: str
    incumbent: int | None = None
    difference: float | None = None
    p_value: float | None = None
    same_as: int | None = None


class TestOpened(_Event):
    """The sealed test split was opened: from here on it is known, and a second opening (`opening` 2) is less worth.

    experiments: those that are scored on it, the baseline first. seeds: fresh ones, of no run before.
    """

    __test__ = False  # pytest: this is no test

    kind: Literal["test_opened"] = "test_opened"
    opening: int
    experiments: tuple[int, ...]
    seeds: tuple[int, ...]


class TestScored(_Event):
    """A run of experiment `number` for the test that is open; it is none of the experiment's own runs."""

    __test__ = False

    kind: Literal["test_scored"] = "test_scored"
    number: int
    outcome: RunOutcome


class TrialOpened(_Event):
    """Runs beside the search began: an `ablation` of the incumbent, or a `transfer` of it to another scale.

    experiment: the incumbent then. changes: the experiments between the baseline and it whose changes an ablation takes
    out in turn. seeds: of every arm, fresh ones. budget: of one run. scale: of a transfer, as it was asked for.
    """

    kind: Literal["trial_opened"] = "trial_opened"
    trial: int
    purpose: Literal["ablation", "transfer"]
    experiment: int
    seeds: tuple[int, ...]
    budget: str
    changes: tuple[int, ...] = ()
    scale: dict[str, str] = {}


class TrialTraced(_Event):
    """An arm's candidate was traced. commit: of its sources and config, in the workspace."""

    kind: Literal["trial_traced"] = "trial_traced"
    arm: str
    commit: str
    outcome: TraceOutcome


class TrialRun(_Event):
    """A run of an arm."""

    kind: Literal["trial_run"] = "trial_run"
    arm: str
    outcome: RunOutcome


class TrialJudged(_Event):
    """Whether the winner needs the change of experiment `number`. Figures: of leaving it out, above zero is worse."""

    kind: Literal["trial_judged"] = "trial_judged"
    number: int
    arm: str
    needed: bool
    reason: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


class TrialClosed(_Event):
    """The trial is done. dropped: changes that an ablation found not to matter; commit: the winner without them."""

    kind: Literal["trial_closed"] = "trial_closed"
    dropped: tuple[int, ...] = ()
    commit: str = ""


class Stopped(_Event):
    """A session ended in good order. `finished` says that the study had reached its end, and not just this session."""

    kind: Literal["stopped"] = "stopped"
    reason: str
    finished: bool = False
    interrupted: bool = False


Event = Annotated[
    StudyCreated
    | SessionStarted
    | ProposalRequested
    | LLMCalled
    | Checked
    | ProposalFailed
    | Proposed
    | Traced
    | RunStarted
    | RunFinished
    | Decided
    | TestOpened
    | TestScored
    | TrialOpened
    | TrialTraced
    | TrialRun
    | TrialJudged
    | TrialClosed
    | Stopped,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def encode(event: Event) -> str:
    """`event` as canonical JSON: sorted keys, no white space, ASCII. Equal events give equal text.

    Infinities are written as Python's json does; pydantic's own JSON would lose them.
    """
    return json.dumps(event.model_dump(), sort_keys=True, separators=(",", ":"))


def decode(payload: str) -> Event:
    """The event that `encode` wrote. Raises `ValueError` when `payload` is not one."""
    return _ADAPTER.validate_python(json.loads(payload))
