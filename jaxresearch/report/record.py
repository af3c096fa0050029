"""StudyRecord: a whole study as one documented object. `export --format json` writes it, and the page is made from it.

All text in it came through `clean`, so that no control or bidirectional character is left, and all its numbers are
finite: what is not, and what does not exist yet, is null. docs/export.md tells the same to readers of the file.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from jaxresearch.experiment import Verdict
from jaxresearch.text import Translation, clean

SCHEMA = "jaxresearch.study/1"
"""Named in every record. The number grows when a key changes its meaning or goes; new keys do not change it."""


def revealed(text: str) -> str:
    r"""`text` with control and format characters spelled out, for source code, where hiding them would hide a trick.

    >>> revealed("a = 1\u202e # x\n")
    'a = 1\\u202e # x\n'
    """
    return text.translate(_REVEALED)


def _spelled(character: str) -> str:
    point = ord(character)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


_REVEALED = Translation(_spelled)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clean_value(value: Any) -> Any:
    """`value`, of JSON's kinds, with all its texts clean and what is not finite as None."""
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean(str(key)): clean_value(each) for key, each in value.items()}
        case list() | tuple():
            return [clean_value(each) for each in value]
        case _:
            return _finite(value)


def _finite_points(curve: Any) -> Any:
    """`clean_value`, but quick: curves are most of a record's numbers, and nearly all of them finite."""
    try:
        finite = math.isfinite(sum(chain.from_iterable(curve)))  # then each of them is
    except TypeError:  # a null among them
        finite = False
    return curve if finite else clean_value(curve)


Clean = Annotated[str, AfterValidator(clean)]
Source = Annotated[str, AfterValidator(revealed)]
Figure = Annotated[float | None, BeforeValidator(_finite)]
Curve = Annotated[tuple[tuple[float | None, float | None], ...], BeforeValidator(_finite_points)]
Value = Annotated[bool | int | float | str | None, BeforeValidator(clean_value)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AuditRecord(_Record):
    """One integrity check of one run: how many probes, and the largest deviation that any of them saw."""

    name: Clean
    passed: bool
    probes: int
    max_deviation: Figure = None
    detail: Clean = ""


class ResumptionRecord(_Record):
    """A run that was cut went on from a checkpoint. alike: on the device, threads and jax that had written it."""

    progress: Figure
    steps: int
    alike: bool = True


class RunRecord(_Record):
    """A program trained with one seed. A completed run has figures; a failed one a verdict and a reason."""

    status: Literal["completed", "failed"]
    seed: int
    identity: str
    program: Clean = ""
    shared_from: int | None = Field(default=None, description="the experiment whose equal run was taken instead")
    val_bpb: Figure = Field(default=None, description="validation bits per byte; lower is better")
    loss: Figure = Field(default=None, description="last training loss, nats per token")
    steps: int | None = None
    tokens: int | None = None
    flops: Figure = None
    train_seconds: Figure = None
    compile_seconds: Figure = None
    eval_seconds: Figure = None
    audit_seconds: Figure = None
    probe_seconds: Figure = Field(default=None, description="of early scores, between training's steps")
    trace_seconds: Figure = None
    verify_seconds: Figure = Field(default=None, description="of verifying the program's StableHLO, and storing it")
    setup_seconds: Figure = Field(
        default=None, description="of training, off its clock: warm-up, first state, checkpoints"
    )
    keep_seconds: Figure = Field(default=None, description="of ending its checkpoints, and keeping a final state")
    total_seconds: Figure = None
    tokens_per_second: Figure = None
    mfu: Figure = Field(default=None, description="model FLOPs utilisation, 0 to 1")
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    corpus: Clean = ""
    tokenizer: Clean = ""
    budget: Clean = ""
    device: Clean = ""
    threads: int | None = None
    jax: Clean = ""
    attention: Clean = Field(default="", description="what computes it: `cudnn`, or `xla` and why not a kernel")
    devices: int | None = None
    processes: int | None = None
    sandbox: Clean = Field(default="", description="the tier in which its candidate was traced")
    worker: Clean = Field(default="", description="the tier in which it ran; unsandboxed (why) where it had none")
    flags: tuple[Clean, ...] = ()
    checkpoint: Clean = Field(default="", description="sha256:... of its final state, where that was kept")
    resumed: tuple[ResumptionRecord, ...] = ()
    checkpoint_note: Clean = Field(default="", description="why a checkpoint was not used, or not written")
    verdict: Verdict | None = None
    reason: Clean = ""
    step: int | None = None
    traceback: Source = ""
    audits: tuple[AuditRecord, ...] = ()
    curve: Curve = Field(default=(), description="(progress, training loss) pairs")
    probes: tuple[tuple[Figure, Figure], ...] = Field(
        default=(), description="(share of the budget, bits per byte on the first validation batch) on the way"
    )


class ExperimentRecord(_Record):
    """A candidate with its runs and the verdict on it. Number 0 is the baseline."""

    number: int
    parent: int | None
    title: Clean
    hypothesis: Clean = ""
    expected_effect: Clean = ""
    tag: Clean = ""
    llm: Clean = Field(default="", description="the model that was asked for it, if any")
    predicted_bpb: Figure = Field(default=None, description="change in val_bpb that the strategy expected")
    confidence: Figure = Field(default=None, description="chance to be kept that the strategy stated, 0 to 1")
    repairs: int | None = Field(default=None, description="the crashed experiment whose idea this is, once more")
    config: dict[Clean, Value] = Field(default_factory=dict, description="hyperparameters that it sets")
    diff: Source = Field(default="", description="unified diff against its parent; hidden characters spelled out")
    verdict: Verdict | None = Field(description="null while pending")
    reason: Clean = ""
    compared_with: int | None = Field(default=None, description="the incumbent that it met")
    difference: Figure = Field(default=None, description="mean paired difference in val_bpb; below zero is better")
    difference_low: Figure = Field(default=None, description="95 % interval of it, Student's t over the seeds")
    difference_high: Figure = None
    p_value: Figure = None
    same_as: int | None = Field(default=None, description="the experiment that a duplicate repeats")
    simpler: bool = Field(default=False, description="kept because it is simpler, not better: no improvement")
    quarantine: Clean = Field(default="", description="why its gain had to hold on fresh seeds first")
    val_bpb: Figure = Field(default=None, description="mean over seeds")
    sem: Figure = Field(default=None, description="standard error of val_bpb")
    runs: tuple[RunRecord, ...] = ()
    running_seed: int | None = Field(default=None, description="of the run that is on its way")
    commit: Clean = ""
    program: Clean = ""
    failure: Clean = Field(default="", description="why it gave no program")
    traceback: Source = Field(default="", description="of tracing, when that failed")
    trace_seconds: Figure = None
    proposed_at: float = Field(description="seconds since the epoch, UTC")
    decided_at: float | None = None
    accelerator_seconds: float = 0.0
    llm_calls: float = Field(default=0, description="its share of its round's")
    llm_tokens: float = 0
    llm_cost_usd: float = 0.0
    command: Clean = Field(default="", description="runs it again")


class NoiseRecord(_Record):
    """Standard deviation of val_bpb when nothing but the seed changes, with its 95 % interval."""

    sd_bpb: Figure
    degrees_of_freedom: float
    low_bpb: Figure
    high_bpb: Figure


class PhaseRecord(_Record):
    """Wall seconds that the sessions spent on one kind of work."""

    name: str
    seconds: float


class AuditTotal(_Record):
    """One audit over the whole study."""

    name: Clean
    passed: int
    failed: int
    probes: int
    max_deviation: Figure = Field(default=None, description="largest among those that passed")


class IntegrityRecord(_Record):
    """Why the figures may be believed. `head` is the hash of the last event; whoever knows it can tell a changed past."""

    events: int
    head: str
    anchored: bool | None = Field(description="commit messages and ledger agree; null where that was not checked")
    anchors: int = 0
    sandboxes: dict[Clean, int] = Field(description="isolation tier: completed runs traced in it")
    workers: dict[Clean, int] = Field(default_factory=dict, description="isolation tier of the worker: completed runs")
    devices: dict[Clean, int] = Field(default_factory=dict)
    attention: dict[Clean, int] = Field(default_factory=dict, description="what computed it: completed runs")
    checkpoints: int = Field(default=0, description="runs whose final state was kept")
    resumed: int = Field(default=0, description="runs that were cut and went on from a checkpoint")
    audits: tuple[AuditTotal, ...] = ()
    refused: int = Field(default=0, description="experiments judged `invalid`: their scores count for nothing")
    flags: dict[Clean, int] = Field(default_factory=dict)


class IncidentRecord(_Record):
    """Something that a person should know of, with the model and the strategy behind it."""

    seq: int = Field(description="of the event that shows it")
    time: float
    kind: Clean
    pattern: Clean
    llm: Clean
    strategy: Clean
    experiment: int | None = None
    detail: Clean = ""


class CommandRecord(_Record):
    """A command of the shell with what it is for."""

    purpose: str
    command: Clean


class OriginRecord(_Record):
    """An experiment of another study. `head` is the hash of that ledger's last event at the time."""

    study: Clean
    head: str
    experiment: int
    commit: Clean = ""
    val_bpb: Figure = Field(default=None, description="its score there, under `budget`")
    budget: Clean = ""


class StudyRecord(_Record):
    """The study up to event `integrity.events`."""

    schema_name: Literal["jaxresearch.study/1"] = Field(default=SCHEMA, alias="schema")
    study: Clean
    strategy: Clean
    llm: Clean
    state: Literal["finished", "stopped", "open"]
    stopped: Clean = Field(default="", description="why the last session ended")
    budget: Clean
    planned_experiments: int
    created_at: float
    updated_at: float
    config: Annotated[dict[str, Any], BeforeValidator(clean_value)]
    instructions: Clean = Field(default="", description="program.md")
    versions: dict[str, Clean]
    fingerprints: dict[str, Clean]
    origin: OriginRecord | None = Field(default=None, description="whose winner the baseline is")
    baseline: int = 0
    incumbent: int
    gain: Figure = Field(default=None, description="baseline's val_bpb minus the incumbent's; above zero is better")
    gain_low: Figure = Field(
        default=None, description="95 % interval of it over the seeds that both ran, its choice not counted"
    )
    gain_high: Figure = None
    gain_corrected: Figure = Field(default=None, description="it, less what choosing among many has flattered it by")
    noise: NoiseRecord | None
    verdicts: dict[str, int]
    failed_proposals: int
    last_failure: Clean = ""
    sessions: int
    wall_seconds: float
    accelerator_seconds: float
    train_seconds: float
    cut_runs: int = Field(default=0, description="first runs that were ended early because they were hopelessly behind")
    train_seconds_saved: float = Field(default=0.0, description="by cutting them; an estimate")
    machine_warning: str | None = Field(default=None, description="when equal programs did not run equally fast")
    trials: tuple[Clean, ...] = Field(default=(), description="each ablation and transfer in a sentence")
    confirmation: Clean = Field(default="", description="what the sealed test said when it was last opened")
    expected_false_keeps: Figure = Field(default=None, description="keeps by chance, at most, if nothing had an effect")
    repairs: dict[str, int] = Field(default_factory=dict, description="crashed ideas tried again, and kept then")
    calibration: dict[str, int | float | None] | None = Field(
        default=None, description="stated chances to be kept against verdicts, predicted changes against measured ones"
    )
    llm_calls: int
    llm_tokens: int
    llm_cost_usd: float
    llm_unpriced_tokens: int = Field(default=0, description="of models that have no known price")
    llm_possible_cost_usd: float = Field(default=0.0, description="at most, of requests that were never answered")
    max_cost: Figure = Field(default=None, description="US dollars of model calls that may be used; null for no cap")
    max_seconds: Figure = None
    phases: tuple[PhaseRecord, ...]
    integrity: IntegrityRecord
    incidents: tuple[IncidentRecord, ...] = ()
    reproduce: tuple[CommandRecord, ...]
    experiments: tuple[ExperimentRecord, ...]

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def to_json(self) -> str:
        """The record as JSON text, ending in a newline."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"
