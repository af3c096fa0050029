"""From a study to its record: the history says what was decided, the timeline what it took, git what was changed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import TracedCandidate, TraceFailure
from jaxresearch.experiment import CompletedRun, Verdict
from jaxresearch.report.record import (
    AuditTotal,
    CommandRecord,
    ExperimentRecord,
    IncidentRecord,
    IntegrityRecord,
    NoiseRecord,
    OriginRecord,
    PhaseRecord,
    RunRecord,
    StudyRecord,
)
from jaxresearch.report.timeline import PHASES, Timeline
from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.study.beside import said_of_trials
from jaxresearch.study.confirm import conclusion as confirmed_in_words
from jaxresearch.study.cuts import cuts
from jaxresearch.study.drift import drift_warning
from jaxresearch.study.entry import Entry
from jaxresearch.study.history import History, fold
from jaxresearch.study.layout import StudyLayout, no_study
from jaxresearch.study.ledger import Ledger, StoredEvent
from jaxresearch.study.pairing import contest_scores
from jaxresearch.study.predictions import calibration, predictions
from jaxresearch.study.selection import corrected_gain_bpb
from jaxresearch.study.summary import expected_false_keeps, repairs
from jaxresearch.study.workspace import Workspace

INSTRUCTIONS_LIMIT = 20_000
_PROPOSED = ("hypothesis", "expected_effect", "tag", "config", "predicted_bpb", "confidence", "repairs")


class StudyReader:
    """A study folder, open for reading only: it takes no lock and changes nothing, also while the study runs."""

    def __init__(self, folder: Path) -> None:
        self.layout = StudyLayout(folder.absolute())
        self.name = str(folder)
        if not self.layout.exists:
            raise no_study(folder)
        self.ledger = Ledger.open(self.layout.ledger, read_only=True)
        try:
            self.workspace = Workspace.open(self.layout.workspace)
            self.timeline = Timeline()
            self.history = self._first()
        except BaseException:
            self.ledger.close()
            raise

    def refresh(self) -> bool:
        """Read what was added to the ledger since; whether anything was."""
        before = self.history.seq
        for stored in self.ledger.read(after=(self.history.seq, self.history.head), whole=False):
            self.history = self.history.apply(stored)
            self.timeline.apply(stored)
        return self.history.seq > before

    def record(self, *, check_anchors: bool = True, diffs: bool = True, experiments: bool = True) -> StudyRecord:
        """Everything about the study. check_anchors: compare ledger and commits. diffs: ask git for them.

        experiments: False leaves them out, for who needs only the study's own figures.
        """
        anchored, anchors = self._anchored() if check_anchors else (None, 0)
        return study_record(
            self.history,
            self.timeline,
            study=self.name,
            diffs=self.diffs() if diffs else {},
            instructions=self.instructions(),
            anchored=anchored,
            anchors=anchors,
            entries=self.history.entries if experiments else (),
        )

    def diffs(self, numbers: list[int] | None = None) -> dict[int, str]:
        """Unified diffs against the parent, by experiment."""
        commits = [entry.experiment.commit for entry in self.history.entries]
        pairs = {
            entry.number: (commits[entry.experiment.parent], commits[entry.number])
            for entry in self.history.entries
            if entry.experiment.parent is not None and (numbers is None or entry.number in numbers)
        }
        pairs = {number: pair for number, pair in pairs.items() if all(pair)}
        return dict(zip(pairs, self.workspace.diffs(list(pairs.values())), strict=True))

    def instructions(self) -> str:
        try:
            return self.layout.instructions.read_text("utf-8", "replace")[:INSTRUCTIONS_LIMIT]
        except OSError:
            return ""

    def close(self) -> None:
        self.ledger.close()

    def _first(self) -> History:
        return fold(map(self._in_time, self.ledger.read(whole=False)))

    def _in_time(self, stored: StoredEvent) -> StoredEvent:
        """`stored`, once the timeline has it: the ledger is read once, and never held whole."""
        self.timeline.apply(stored)
        return stored

    def _anchored(self) -> tuple[bool, int]:
        """Whether the file is whole and has all anchors in it. Its chain was checked as it was read, and is not again."""
        anchors = self.workspace.anchors()
        try:
            self.ledger.check_file()
            self.ledger.check_anchors((*anchors, self.history.head))
        except JaxresearchError:
            return False, len(anchors)
        return True, len(anchors)


def read_record(folder: Path) -> StudyRecord:
    """The record of the study in `folder`. Raises `JaxresearchError` in one line."""
    reader = StudyReader(folder)
    try:
        return reader.record()
    finally:
        reader.close()


def study_record(
    history: History,
    timeline: Timeline,
    *,
    study: str,
    diffs: Mapping[int, str],
    instructions: str,
    anchored: bool | None,
    anchors: int = 0,
    entries: Sequence[Entry],
) -> StudyRecord:
    """The record of `history`, with `entries` of it as experiments."""
    created, config, costs, noise = history.created, history.config, history.costs, history.noise
    best, baseline = history.incumbent.experiment, history.baseline.experiment
    gain = paired_gain(baseline.scores, best.scores) if best.number != baseline.number else None
    stopped, saved = history.stopped, cuts(history)
    return StudyRecord(
        study=study,
        strategy=config.strategy.name,
        llm=config.llm.model,
        state="open" if stopped is None else "finished" if stopped.finished else "stopped",
        stopped=stopped.reason if stopped is not None else "",
        budget=config.budget,
        planned_experiments=history.planned,
        created_at=timeline.created_at,
        updated_at=history.time,
        config=config.model_dump(mode="json"),
        instructions=instructions,
        versions={"jaxresearch": created.jaxresearch, "jax": created.jax, "python": created.python},
        fingerprints={"subject": created.subject, "corpus": created.corpus, "tokenizer": created.tokenizer},
        origin=OriginRecord.model_validate(created.origin.model_dump()) if created.origin is not None else None,
        incumbent=history.incumbent_number,
        gain=gain.mean_bpb if gain else None,
        gain_low=gain.low_bpb if gain else None,
        gain_high=gain.high_bpb if gain else None,
        gain_corrected=corrected_gain_bpb(history),
        noise=NoiseRecord.model_validate(noise, from_attributes=True) if noise is not None else None,
        verdicts={str(verdict): count for verdict, count in history.verdicts.items()},
        failed_proposals=history.failed_proposals,
        last_failure=history.last_failure,
        sessions=history.sessions,
        wall_seconds=costs.wall_seconds,
        accelerator_seconds=costs.paid_seconds,
        train_seconds=costs.train_seconds,
        cut_runs=saved.runs,
        train_seconds_saved=saved.train_seconds_saved,
        machine_warning=drift_warning(history),
        trials=tuple(said_of_trials(history)),
        confirmation=confirmed_in_words(history) if history.openings else "",
        expected_false_keeps=expected_false_keeps(history),
        repairs=repairs(history),
        calibration=calibration([predictions(history)]),
        llm_calls=costs.llm_calls,
        llm_tokens=costs.llm_tokens,
        llm_cost_usd=costs.llm_cost_usd,
        llm_unpriced_tokens=costs.llm_unpriced_tokens,
        llm_possible_cost_usd=costs.llm_possible_cost_usd,
        max_cost=history.max_cost,
        max_seconds=history.max_seconds,
        phases=tuple(PhaseRecord(name=name, seconds=timeline.phases[name]) for name in PHASES),
        integrity=_integrity(history, anchored, anchors),
        incidents=tuple(IncidentRecord.model_validate(vars(each)) for each in history.incidents),
        reproduce=_reproduce(history, study),
        experiments=tuple(
            experiment_record(history, timeline, entry, study=study, diff=diffs.get(entry.number, ""))
            for entry in entries
        ),
    )


def experiment_record(
    history: History, timeline: Timeline, entry: Entry, *, study: str, diff: str = ""
) -> ExperimentRecord:
    """One experiment of `history`."""
    experiment, proposal, decision = entry.experiment, entry.experiment.proposal, entry.decision
    trace, spending = entry.trace, timeline.spending(entry.number)
    rival = history.entries[decision.incumbent] if decision and decision.incumbent is not None else None
    met = rival if rival is not entry else None
    difference = paired_gain(*contest_scores(history, entry, met)) if met is not None else None
    return ExperimentRecord.model_validate(
        {
            **({} if proposal is None else proposal.model_dump(include=set(_PROPOSED))),
            "number": entry.number,
            "llm": entry.llm,
            "parent": experiment.parent,
            "title": experiment.title,
            "diff": diff,
            "verdict": experiment.verdict,
            "reason": experiment.reason,
            "compared_with": decision.incumbent if decision else None,
            "difference": decision.difference if decision else None,
            "difference_low": difference.low_bpb if difference else None,
            "difference_high": difference.high_bpb if difference else None,
            "p_value": decision.p_value if decision else None,
            "same_as": decision.same_as if decision else None,
            "simpler": decision.simpler if decision else False,
            "quarantine": entry.quarantine.reason if entry.quarantine is not None else "",
            "val_bpb": experiment.val_bpb,
            "sem": experiment.sem,
            "runs": [
                RunRecord.model_validate(
                    {**run.model_dump(), "shared_from": timeline.shared_from.get((entry.number, run.identity))}
                )
                for run in experiment.runs
            ],
            "running_seed": entry.running.seed if entry.running is not None else None,
            "commit": experiment.commit,
            "program": experiment.program,
            "failure": trace.reason if isinstance(trace, TraceFailure) else "",
            "traceback": trace.traceback if isinstance(trace, TraceFailure) else "",
            "trace_seconds": trace.trace_seconds if trace is not None else None,
            "proposed_at": entry.time,
            "decided_at": timeline.decided_at.get(entry.number),
            "accelerator_seconds": timeline.accelerator_seconds.get(entry.number, 0.0),
            "llm_calls": spending.calls,
            "llm_tokens": spending.tokens,
            "llm_cost_usd": spending.cost_usd,
            "command": _again(entry, study),
        }
    )


def _integrity(history: History, anchored: bool | None, anchors: int) -> IntegrityRecord:
    runs = [run for entry in history.entries for run in entry.experiment.runs]
    completed = [run for run in runs if isinstance(run, CompletedRun)]
    totals: dict[str, list] = {}
    for audit in (audit for run in runs for audit in run.audits):
        totals.setdefault(audit.name, []).append(audit)
    return IntegrityRecord(
        events=history.seq,
        head=history.head,
        anchored=anchored,
        anchors=anchors,
        sandboxes=Counter(run.sandbox or "unknown" for run in completed),
        workers=Counter(run.worker or "unknown" for run in completed),
        devices=Counter(run.device for run in completed),
        attention=Counter(run.attention for run in completed if run.attention),
        checkpoints=sum(bool(run.checkpoint) for run in completed),
        resumed=sum(bool(run.resumed) for run in runs),
        audits=tuple(
            AuditTotal(
                name=name,
                passed=sum(audit.passed for audit in audits),
                failed=sum(not audit.passed for audit in audits),
                probes=sum(audit.probes for audit in audits),
                max_deviation=max((audit.max_deviation for audit in audits if audit.passed), default=None),
            )
            for name, audits in sorted(totals.items())
        ),
        refused=history.verdicts[Verdict.INVALID],
        flags=Counter(flag for run in completed for flag in run.flags),
    )


def _reproduce(history: History, study: str) -> tuple[CommandRecord, ...]:
    folder, best, origin = shlex.quote(study), history.incumbent_number, history.created.origin
    start = f" --from {shlex.quote(origin.study)}" if origin is not None else ""
    seed = next(iter(history.incumbent.experiment.scores), 0)
    commands = [
        ("The best experiment: hypothesis, diff, runs and why it was kept", f"jaxresearch show {folder} {best}"),
        ("Train it again", f"jaxresearch train --study {folder} --experiment {best} --seed {seed}"),
        ("The change itself, as a patch", f"jaxresearch export {folder} --format patch"),
        (
            "The whole study again, in a new folder",
            f"jaxresearch run --config {shlex.quote(f'{study}/study.yaml')} --study {shlex.quote(f'{study}-again')}{start}",
        ),
        ("This record, for other programs", f"jaxresearch export {folder} --format json"),
    ]
    return tuple(CommandRecord(purpose=purpose, command=command) for purpose, command in commands)


def _again(entry: Entry, study: str) -> str:
    if not isinstance(entry.trace, TracedCandidate):
        return f"jaxresearch show {shlex.quote(study)} {entry.number}"
    seed = next(iter(entry.experiment.scores), 0)
    return f"jaxresearch train --study {shlex.quote(study)} --experiment {entry.number} --seed {seed}"
