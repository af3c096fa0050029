"""The events of a study. The ledger is a list of them, and all else about a study is a view of that list."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import TracedCandidate, TraceFailure
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.study.size import CodeSize

SCHEMA_VERSION = 3
"""Of the ledger. It grows when an event, or how it is kept, changes so that older code could not read it."""
READABLE_VERSIONS = (1, 2, 3)
"""1: payloads are text. 2: long ones are packed. 3: what a model was sent lies beside the events."""

TraceOutcome = TracedCandidate | TraceFailure


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Event):
    """The experiment of another study that this one begins with. head: the hash of that ledger's last event then.

    val_bpb: its score there, under `budget`; here its baseline is measured anew.
    """

    study: str
    head: str
    experiment: int
    commit: str
    val_bpb: float | None = None
    budget: str = ""


class StudyCreated(_Event):
    """The first event: all that is fixed for the whole study.

    subject: fingerprint of the baseline's candidate. corpus, tokenizer: fingerprints that runs must have been made on.
    instructions: SHA-256 of program.md as it was. origin: whose winner the baseline is; None for the subject itself.
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
    origin: Origin | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_before_them(cls, facts: Any) -> Any:
        """A study whose settings do not know a part of the rule was begun without it, and goes on so."""
        match facts:
            case {"config": {"acceptance": {**acceptance}} as config}:
                return {**facts, "config": {**config, "acceptance": {"interleave": 0, "own_spread": 0.0, **acceptance}}}
            case _:
                return facts


class SessionStarted(_Event):
    """A process began to drive the study. Time between sessions is not the study's.

    The others: another end than before, from here on; None leaves it as it is. max_cost, max_tokens: of model calls.
    max_seconds: of the study's sessions. stop_after_no_gain: 0 for never.
    """

    kind: Literal["session_started"] = "session_started"
    pid: int
    host: str
    max_cost: float | None = None
    max_tokens: int | None = None
    experiments: int | None = None
    max_seconds: float | None = None
    stop_after_no_gain: int | None = None


class ProposalRequested(_Event):
    """A round began: the strategy is being asked. `seed` is the view's; `instructions` the SHA-256 of program.md.

    text: program.md itself, keys taken out, where no earlier request has it: it may be edited, and replay reads it here.
    """

    kind: Literal["proposal_requested"] = "proposal_requested"
    round: int
    slots: int
    seed: int
    instructions: str
    text: str | None = None


class LLMCalled(_Event):
    """One model request of a round with its reply or error, as the recording model wrote it. `ordinal` is from 0.

    record: of an `LLMCall`. Where the ledger was read without texts, its `request` is a reference; see `study.texts`.
    """

    kind: Literal["llm_called"] = "llm_called"
    round: int
    ordinal: int
    record: dict[str, Any]


class Checked(_Event):
    """A strategy asked what is wrong with `proposal`; `finding` is the answer, None for nothing.

    tree: fingerprint of the candidate, empty when the proposal did not apply. trace: what tracing gave, if it was done.
    nonce: of the fence around what the candidate printed, in `finding`; drawn anew for each check.
    """

    kind: Literal["checked"] = "checked"
    round: int
    proposal: Proposal
    finding: str | None
    tree: str = ""
    trace: TraceOutcome | None = None
    nonce: str = ""


class Approval(_Event):
    """A person was shown a change of the sources and answered. `sources`: fingerprint of the changed sources."""

    kind: Literal["approval"] = "approval"
    sources: str
    approved: bool
    reason: str = ""


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
    size: of its sources; None in ledgers from before sizes were taken.
    """

    kind: Literal["traced"] = "traced"
    number: int
    commit: str
    tree: str
    outcome: TraceOutcome
    size: CodeSize | None = None


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


class RunDiscarded(_Event):
    """A run was done ahead of time, while an earlier experiment of its round was worked on, and was not needed as it was.

    It decides nothing; it was paid for. accelerator_seconds: of its compiling, training and scoring; of a run that was
    ended on its way, the time until then.
    """

    kind: Literal["run_discarded"] = "run_discarded"
    number: int
    identity: str
    seed: int
    accelerator_seconds: float


class Quarantined(_Event):
    """Experiment `number` would be kept, yet its gain is implausible: it must hold on fresh `seeds` first.

    incumbent, difference, p_value: as the verdict `keep` would have had them.
    """

    kind: Literal["quarantined"] = "quarantined"
    number: int
    reason: str
    seeds: tuple[int, ...]
    incumbent: int
    difference: float
    p_value: float | None = None
    keep_reason: str


class Decided(_Event):
    """The verdict on experiment `number`, with its reason in words.

    incumbent: the experiment it was compared with. difference: mean paired difference in bits per byte, below zero is
    better. p_value: of the acceptance test, where one was made. same_as: the experiment that a duplicate repeats.
    simpler: kept because it is simpler and not shown to be better; no improvement. reference: after a `keep`, the best
    incumbent so far, against which simpler candidates are held; None for this experiment itself.
    """

    kind: Literal["decided"] = "decided"
    number: int
    verdict: Verdict
    reason: str
    incumbent: int | None = None
    difference: float | None = None
    p_value: float | None = None
    same_as: int | None = None
    simpler: bool = False
    reference: int | None = None


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
    """A session ended in good order. `finished` says that the study had reached its end, and not just this session.

    incidents: the study paused itself because there were too many of them; from here on they are counted anew.
    failed: it could not go on as things were, and `reason` is the error.
    """

    kind: Literal["stopped"] = "stopped"
    reason: str
    finished: bool = False
    interrupted: bool = False
    incidents: bool = False
    failed: bool = False


Event = Annotated[
    StudyCreated
    | SessionStarted
    | ProposalRequested
    | LLMCalled
    | Checked
    | Approval
    | ProposalFailed
    | Proposed
    | Traced
    | RunStarted
    | RunFinished
    | RunDiscarded
    | Quarantined
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


def decode(payload: str | bytes) -> Event:
    """The event that `encode` wrote. Raises `ValueError` when `payload` is not one.

    pydantic's parser takes half the time of Python's; what only Python's reads, half a character for one, is read by that.
    """
    try:
        return _ADAPTER.validate_json(payload)
    except ValidationError:
        return _ADAPTER.validate_python(json.loads(payload))
