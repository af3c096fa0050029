"""Judging a contender that has run: better, simpler, implausible, or breaking a constraint. A pure function of the history.

1. What breaks a constraint is discarded, however good it is.
2. Better by the rule of acceptance: kept; first quarantined, when the gain is implausible.
3. Not better, yet simpler and shown not to be worse than a margin: kept as such, which is no improvement.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import assert_never

from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.statistics.acceptance import Acceptance, Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noninferiority import NonInferiority
from jaxresearch.statistics.plausibility import holds_again, suspicion
from jaxresearch.study.constraints import broken_by_memory, broken_by_time
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import Decided, Quarantined
from jaxresearch.study.evidence import contest_noise
from jaxresearch.study.history import History
from jaxresearch.study.identity import run_seeds
from jaxresearch.study.pairing import contest_scores, too_wide, whose_turn
from jaxresearch.study.simplicity import non_inferiority, simpler_by


@dataclass(frozen=True)
class RunOf:
    """Not known yet: experiment `number` must run with `seed`."""

    number: int
    seed: int


Judgement = RunOf | Quarantined | Decided


def judge(history: History, entry: Entry, acceptance: Acceptance) -> Judgement:
    """What comes of `entry`, whose runs so far all gave a score."""
    incumbent = history.incumbent
    broken = broken_by_memory(history.config.constraints, entry.experiment.runs)
    if broken is not None:
        return _discarded(entry, broken)
    if entry.quarantine is not None:
        return _after_quarantine(history, entry, entry.quarantine, acceptance)
    match answer := _contest(acceptance, history, entry, incumbent):
        case RunOf():
            return answer
        case Keep():
            return _better(history, entry, answer, acceptance)
        case Discard():
            return _not_better(history, entry, answer)
        case _:
            assert_never(answer)


def _contest(rule: Acceptance | NonInferiority, history: History, entry: Entry, other: Entry) -> RunOf | Keep | Discard:
    """What `rule` says of `entry` against `other`, or whose run it needs before it can say."""
    ours, theirs = contest_scores(history, entry, other)
    answer = rule.decide(ours, theirs, contest_noise(history, entry, other), unusable_seeds(other))
    match answer:
        case RunSeed(seed=seed):
            return RunOf(whose_turn(history, entry, other, seed).number, seed)
        case RunIncumbent(seed=seed):
            return RunOf(other.number, seed)
        case Keep() if (lacking := too_wide(history, entry, other)) is not None:
            runner, seed = lacking
            return RunOf(runner.number, seed)
        case _:
            return answer


def unusable_seeds(entry: Entry) -> set[int]:
    """Seeds on which `entry` gives no score."""
    return {run.seed for run in entry.experiment.runs if isinstance(run, FailedRun)}


def fresh_seeds(history: History, count: int) -> tuple[int, ...]:
    """`count` seeds above all that any run of the study used."""
    used = {run.seed for entry in history.entries for run in entry.experiment.runs} | set(run_seeds(history.config))
    used |= {seed for opening in history.openings for seed in opening.event.seeds}
    used |= {seed for trial in history.trials for seed in trial.event.seeds}
    return tuple(range(max(used) + 1, max(used) + 1 + count))


def _discarded(entry: Entry, reason: str, answer: Keep | None = None) -> Decided:
    return Decided(
        number=entry.number,
        verdict=Verdict.DISCARD,
        reason=reason if answer is None else f"{answer.reason}; but {reason}",
        difference=answer.difference if answer is not None else None,
        p_value=answer.p_value if answer is not None else None,
    )


# Better


def _better(history: History, entry: Entry, answer: Keep, acceptance: Acceptance) -> Judgement:
    broken = broken_by_time(history.config.constraints, entry.experiment.runs)
    if broken is not None:
        return _discarded(entry, broken, answer)
    settings, incumbent = history.config.oversight, history.incumbent
    doubt = None
    if settings.quarantine:
        noise, score, baseline = (
            contest_noise(history, entry, incumbent),
            entry.experiment.val_bpb,
            history.baseline.experiment.val_bpb,
        )
        assert score is not None
        assert baseline is not None
        doubt = suspicion(
            score_bpb=score,
            baseline_bpb=baseline,
            gain_bpb=-answer.difference,
            moves_bpb=[moved for each in history.contenders if (moved := _moved(each)) is not None],
            pair_sd_bpb=noise.sd_bpb if noise is not None else None,
            floor_bpb=settings.floor_bpb,
        )
    if doubt is None:
        return _kept(history, entry, answer.reason, answer.difference, answer.p_value, acceptance)
    if doubt.impossible:
        return Decided(
            number=entry.number,
            verdict=Verdict.INVALID,
            reason=f"implausible: {doubt.reason}; a person should look at it",
            incumbent=incumbent.number,
            difference=answer.difference,
            p_value=answer.p_value,
        )
    return Quarantined(
        number=entry.number,
        reason=doubt.reason,
        seeds=fresh_seeds(history, settings.quarantine_runs),
        incumbent=incumbent.number,
        difference=answer.difference,
        p_value=answer.p_value,
        keep_reason=answer.reason,
    )


def _moved(entry: Entry) -> float | None:
    judged = entry.verdict in (Verdict.KEEP, Verdict.DISCARD)
    return entry.decision.difference if judged and entry.decision is not None else None


def _after_quarantine(history: History, entry: Entry, event: Quarantined, acceptance: Acceptance) -> RunOf | Decided:
    incumbent = history.entries[event.incumbent]
    usable = [seed for seed in event.seeds if seed not in unusable_seeds(incumbent)]
    for seed in usable:
        for each in (incumbent, entry):
            if seed not in each.experiment.scores:
                return RunOf(each.number, seed)
    fresh = [entry.experiment.scores[seed] - incumbent.experiment.scores[seed] for seed in usable]
    came = (
        f"on {len(fresh)} fresh seeds it is {statistics.fmean(fresh):+.4f} bpb"
        if fresh
        else "no fresh seed could be had"
    )
    if holds_again(fresh, event.difference):
        reason = f"{event.keep_reason}; quarantined, for {event.reason}: {came}, and it holds"
        return _kept(history, entry, reason, event.difference, event.p_value, acceptance)
    return Decided(
        number=entry.number,
        verdict=Verdict.DISCARD,
        reason=f"quarantined, for {event.reason}: {came}, so it does not hold; a person should look at it",
        incumbent=incumbent.number,
        difference=event.difference,
        p_value=event.p_value,
    )


def _kept(
    history: History, entry: Entry, reason: str, difference: float, p_value: float | None, acceptance: Acceptance
) -> RunOf | Decided:
    """Kept as an improvement over the incumbent. After simplifications it must also show whether it beats the best."""
    reference, improves = history.reference, True
    if reference.number != history.incumbent_number:
        answer = _contest(acceptance, history, entry, reference)
        if isinstance(answer, RunOf):
            return answer
        improves = isinstance(answer, Keep)
    return Decided(
        number=entry.number,
        verdict=Verdict.KEEP,
        reason=reason,
        incumbent=history.incumbent_number,
        difference=difference,
        p_value=p_value,
        reference=None if improves else reference.number,
    )


# Simpler


def _not_better(history: History, entry: Entry, answer: Discard) -> RunOf | Decided:
    test, less = non_inferiority(history), simpler_by(entry, history.incumbent)
    decision = Decided(
        number=entry.number,
        verdict=Verdict.DISCARD,
        reason=answer.reason,
        incumbent=history.incumbent_number,
        difference=answer.difference,
        p_value=answer.p_value,
    )
    if test is None or less is None:
        return decision
    reference = history.reference
    match verdict := _contest(test, history, entry, reference):
        case RunOf():
            return verdict
        case Discard():
            return decision.model_copy(
                update={"reason": f"{answer.reason}. It is simpler ({less}), but {verdict.reason}"}
            )
        case Keep():
            pass
        case _:
            assert_never(verdict)
    broken = broken_by_time(history.config.constraints, entry.experiment.runs)
    if broken is not None:
        return decision.model_copy(update={"reason": broken})
    return decision.model_copy(
        update={
            "verdict": Verdict.KEEP,
            "reason": f"kept: simpler, not better: {less}; against experiment {reference.number}: {verdict.reason}",
            "p_value": verdict.p_value,
            "simpler": True,
            "reference": reference.number,
        }
    )
