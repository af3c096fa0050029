"""Run and Experiment: what was trained, what it scored, and the verdict on it. Frozen data, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.proposal import Proposal, Scalar


class Verdict(StrEnum):
    """What became of an experiment."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    INVALID = "invalid"
    DUPLICATE = "duplicate"
    TIMEOUT = "timeout"
    INFRASTRUCTURE = "infrastructure"


class Audit(BaseModel):
    """One integrity check of one evaluation: how many probes, and the largest deviation that any of them saw."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    probes: int
    max_deviation: float
    detail: str = ""


class Resumption(BaseModel):
    """A run that was cut went on from a checkpoint. alike: on the device, threads and jax that had written it.

    progress: share of the budget that was spent until there; steps: how many.
    """

    model_config = ConfigDict(frozen=True)

    progress: float
    steps: int
    alike: bool = True


MACHINE = ("device", "threads", "devices", "processes", "jax")
"""Fields of a run that say what it ran on. Only where all of them agree are the bits of a run the same."""


class CompletedRun(BaseModel):
    """A program trained with one seed under one budget, and scored. Field names are those of `train --json`."""

    model_config = ConfigDict(frozen=True)

    status: Literal["completed"] = "completed"
    identity: str
    val_bpb: float
    loss: float
    steps: int
    tokens: int
    flops: float
    train_seconds: float
    compile_seconds: float
    eval_seconds: float
    audit_seconds: float = 0.0
    probe_seconds: float = Field(default=0.0, description="of early scores, between training's steps")
    trace_seconds: float
    verify_seconds: float = Field(default=0.0, description="of verifying the program's StableHLO, and storing it")
    setup_seconds: float = Field(
        default=0.0, description="of training, off its clock: warm-up, first state, checkpoints"
    )
    keep_seconds: float = Field(default=0.0, description="of ending its checkpoints, and keeping a final state")
    total_seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int
    parameters: int
    program: str
    corpus: str
    tokenizer: str
    seed: int
    budget: str
    device: str
    threads: int
    devices: int = 1
    processes: int = 1
    jax: str
    attention: str = Field(default="", description="what computes it: `cudnn`, or `xla` and why not a kernel")
    sandbox: str
    worker: str = Field(default="", description="the tier in which it ran; unsandboxed (why) where it had none")
    flags: tuple[str, ...] = ()
    audits: tuple[Audit, ...] = ()
    test_bpb: float | None = Field(default=None, description="on the sealed test split; None for all but confirmations")
    curve: tuple[tuple[float, float], ...] = Field(default=(), description="(progress, training loss) pairs")
    checkpoint: str = Field(default="", description="sha256:... of its final state, where that was kept")
    resumed: tuple[Resumption, ...] = ()
    checkpoint_note: str = Field(default="", description="why a checkpoint was not used, or not written")
    probes: tuple[tuple[float, float], ...] = Field(
        default=(), description="(share of the budget, bits per byte on the first validation batch) on the way"
    )


class FailedRun(BaseModel):
    """A run that gave no score that counts. Its verdict is `discard` when it was cut because it was hopelessly behind."""

    model_config = ConfigDict(frozen=True)

    status: Literal["failed"] = "failed"
    identity: str
    verdict: Verdict
    reason: str
    seed: int
    program: str = ""
    step: int | None = None
    total_seconds: float = 0.0
    trace_seconds: float = 0.0
    verify_seconds: float = 0.0
    compile_seconds: float = 0.0
    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    probe_seconds: float = 0.0
    eval_seconds: float = 0.0
    audit_seconds: float = 0.0
    keep_seconds: float = 0.0
    flops: float = 0.0
    traceback: str = ""
    audits: tuple[Audit, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    resumed: tuple[Resumption, ...] = ()
    checkpoint_note: str = ""
    probes: tuple[tuple[float, float], ...] = ()


RunOutcome = Annotated[CompletedRun | FailedRun, Field(discriminator="status")]


class TraceFailure(BaseModel):
    """A candidate that gave no program: `crash` (it raised), `timeout`, `invalid` (refused by the verifier), ..."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    reason: str
    traceback: str = ""
    trace_seconds: float = 0.0

    def of_subject(self, hyperparameters: Mapping[str, Scalar], *, fix: str = "") -> JaxresearchError:
        """Why a subject itself gave none, as an error: of the settings, where it names one of `hyperparameters`."""
        reason = self.reason.rstrip(".")
        if any(name in reason for name in hyperparameters):
            return ConfigurationError(f"subject.hyperparameters: {reason.removeprefix('ValueError: ')}.", fix=fix)
        return JaxresearchError(f"The subject gives no program: {self.verdict}: {reason}.", fix=fix)


@dataclass(frozen=True)
class RunProgress:
    """What a live display shows of a run: `stage` is compile, train or score."""

    stage: str
    progress: float = 0.0
    loss: float | None = None
    step: int = 0


class Experiment(BaseModel):
    """A candidate with its runs and the verdict on it, None while pending. Number 0 is the baseline."""

    model_config = ConfigDict(frozen=True)

    number: int
    parent: int | None
    proposal: Proposal | None
    commit: str = ""
    program: str = ""
    runs: tuple[RunOutcome, ...] = ()
    verdict: Verdict | None = None
    reason: str = ""

    @property
    def scores(self) -> dict[int, float]:
        """val_bpb by seed: of its first run, where it ran again (under a budget in seconds; see study/pairing.py)."""
        scores: dict[int, float] = {}
        for run in self.runs:
            if isinstance(run, CompletedRun):
                scores.setdefault(run.seed, run.val_bpb)
        return scores

    @property
    def val_bpb(self) -> float | None:
        """Mean over seeds, in bits per byte; None when there is no score."""
        scores = self.scores
        return statistics.fmean(scores.values()) if scores else None

    @property
    def sem(self) -> float | None:
        """Standard error of `val_bpb`; None below two runs."""
        scores = list(self.scores.values())
        return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None

    @property
    def checkpointed(self) -> CompletedRun | None:
        """The run whose final state was kept, as the experiment's own; it may have been pruned since."""
        return next((run for run in self.runs if isinstance(run, CompletedRun) and run.checkpoint), None)

    @property
    def title(self) -> str:
        if self.proposal is None:
            return "baseline"
        return next(iter(self.proposal.hypothesis.strip().splitlines()), "no hypothesis")
