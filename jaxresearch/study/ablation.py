"""ablate: takes each change of the winner out in turn, drops what is not shown to matter, and leaves a minimal winner.

    for each change, the one with the smallest claimed effect first, those that others build on when these are gone:
        the winner without it (and without what was dropped before) against the whole winner, on fresh paired seeds
        not shown to be worse: dropped
        worse, or it cannot be left out: kept

Always against the whole winner, never the last stage, so that many small losses do not add up unseen.
"""

from __future__ import annotations

from typing import Any

from jaxresearch.execution.base import Executor, TracedCandidate
from jaxresearch.proposal import Candidate, EditError, apply
from jaxresearch.statistics.leaving_out import effect_of_leaving_out
from jaxresearch.study.events import TrialClosed, TrialJudged, TrialOpened, TrialTraced
from jaxresearch.study.evidence import trial_noise
from jaxresearch.study.history import History
from jaxresearch.study.journal import Journal
from jaxresearch.study.judging import fresh_seeds
from jaxresearch.study.stopping import Stop
from jaxresearch.study.trial import Trial
from jaxresearch.study.trials import (
    Bench,
    last_trial,
    mean_scores,
    refuse_without_winner,
)
from jaxresearch.study.workspace import Workspace
from jaxresearch.text import clean, one_line

WINNER = "winner"


async def ablate(
    journal: Journal, workspace: Workspace, executor: Executor, stop: Stop, *, count: int, again: bool = False
) -> None:
    """Ablate the incumbent on `count` fresh seeds, or go on with an ablation that is not done.

    again: begin another although one is done. Raises `Interrupted` when `stop` is requested, and `JaxresearchError`.
    """
    refuse_without_winner(journal.history)
    last = last_trial(journal.history, "ablation")
    if last is not None and last.closed is not None and not again:
        return
    if last is None or last.closed is not None or journal.history.trials[-1] is not last:
        journal.record(_opened(journal.history, count))
    bench = Bench(journal, workspace, executor, stop)
    if WINNER not in bench.trial.traces:
        entry = journal.history.incumbent
        assert entry.trace is not None, "the incumbent was traced"
        journal.record(TrialTraced(arm=WINNER, commit=entry.experiment.commit, outcome=entry.trace))
    while (number := _next(bench)) is not None:
        journal.record(await _judged(bench, number))
    gone = dropped(bench.trial)
    minimal = without(journal.history, workspace, bench.trial.event.changes, set(gone))
    commit = bench.commit("minimal", minimal, _message(bench.trial, gone))
    journal.record(TrialClosed(dropped=gone, commit=commit))


def _opened(history: History, count: int) -> TrialOpened:
    return TrialOpened(
        trial=len(history.trials) + 1,
        purpose="ablation",
        experiment=history.incumbent_number,
        seeds=fresh_seeds(history, count),
        budget=history.config.budget,
        changes=tuple(entry.number for entry in history.lineage(history.incumbent_number)),
    )


def _next(bench: Bench) -> int | None:
    """The change to leave out next: the first that the others do not need to apply, else the first; None when done."""
    trial = bench.trial
    judged = {each.number for each in trial.judgements}
    left = [each for each in weakest_first(bench.history, trial.event.changes) if each not in judged]

    def applies(number: int) -> bool:
        try:
            without(bench.history, bench.workspace, trial.event.changes, {*dropped(trial), number})
        except EditError:
            return False
        return True

    return next(filter(applies, left), left[0] if left else None)


async def _judged(bench: Bench, number: int) -> TrialJudged:
    """Whether the winner needs change `number`, given what was dropped before."""
    trial, history = bench.trial, bench.history
    gone = {*dropped(trial), number}
    arm = "without " + " ".join(map(str, sorted(gone)))

    def judged(needed: bool, reason: str) -> TrialJudged:
        return TrialJudged(number=number, arm=arm, needed=needed, reason=clean(reason))

    try:
        candidate = without(history, bench.workspace, trial.event.changes, gone)
    except EditError as error:
        return judged(True, f"a later change builds on it: {one_line(str(error), 200)}")
    if candidate == without(history, bench.workspace, trial.event.changes, gone - {number}):
        return judged(False, "later changes replaced it: the winner is the same without it")
    trace = await bench.trace(arm, candidate, f"The winner {arm}")
    if not isinstance(trace, TracedCandidate):
        return judged(True, f"without it there is no program: {one_line(trace.reason, 200)}")
    whole = trial.traces[WINNER]
    if isinstance(whole, TracedCandidate) and (trace.program, trace.traced) == (whole.program, whole.traced):
        return judged(False, "the program is the same without it")
    await bench.run(WINNER, arm)
    failures = bench.trial.failures(arm)
    if failures:
        return judged(True, f"without it: {failures[0]}")
    noise = trial_noise(history, bench.trial, WINNER, arm)
    effect = effect_of_leaving_out(bench.trial.scores(WINNER), bench.trial.scores(arm), noise)
    if effect is None:
        return judged(True, "too few runs came through to tell")
    figures = {"difference": effect.difference, "low": effect.low, "high": effect.high, "p_value": effect.p_value}
    said = f"{effect.difference:+.4f} bpb without it (95 %: {effect.low:+.4f} to {effect.high:+.4f})"
    verdict = "worse" if effect.matters else "within the noise"
    return judged(effect.matters, f"{said}, p = {effect.p_value:.2g}: {verdict}").model_copy(update=figures)


def weakest_first(history: History, changes: tuple[int, ...]) -> list[int]:
    """By the effect that each was decided on; one that was not tested on its own comes first."""

    def claimed(number: int) -> tuple[float, int]:
        decision = history.entries[number].decision
        return (abs(decision.difference) if decision is not None and decision.difference else 0.0, number)

    return sorted(changes, key=claimed)


def without(history: History, workspace: Workspace, changes: tuple[int, ...], left_out: set[int]) -> Candidate:
    """The baseline with all of `changes` but those. Raises `EditError` when one of the others then does not apply."""
    candidate = workspace.candidate(history.baseline.experiment.commit)
    for number in changes:
        proposal = history.entries[number].experiment.proposal
        if number not in left_out and proposal is not None:
            candidate = apply(proposal, candidate)
    return candidate


def dropped(trial: Trial) -> tuple[int, ...]:
    return tuple(sorted(judged.number for judged in trial.judgements if not judged.needed))


def ablation_object(history: History, study: str) -> dict[str, Any] | None:
    """What `ablate --json` prints of the last ablation of the incumbent; None when there is none."""
    trial = last_trial(history, "ablation")
    if trial is None:
        return None
    gone = dropped(trial)
    arm = WINNER if not gone else "without " + " ".join(map(str, gone))
    return {
        "study": study,
        "trial": trial.event.trial,
        "experiment": trial.event.experiment,
        "seeds": list(trial.event.seeds),
        "finished": trial.closed is not None,
        "winner": mean_scores(list(trial.scores(WINNER).values())),
        "minimal": {**mean_scores(list(trial.scores(arm).values())), "commit": _commit(trial)},
        "changes": [
            {**judged.model_dump(exclude={"kind"}), "title": one_line(history.entries[judged.number].experiment.title)}
            for judged in sorted(trial.judgements, key=lambda judged: judged.number)
        ],
        "dropped": list(gone),
        "conclusion": conclusion(trial),
    }


def conclusion(trial: Trial) -> str:
    """The ablation in one sentence."""
    gone, left = dropped(trial), len(trial.event.changes)
    if trial.closed is None:
        return f"Not done: {len(trial.judgements)} of {left} changes are judged. `jaxresearch ablate` goes on."
    if not gone:
        return f"All {left} changes are needed." if left > 1 else "The one change is needed."
    names = ", ".join(map(str, gone))
    be, do = "is" if left - len(gone) == 1 else "are", "does" if len(gone) == 1 else "do"
    return f"{left - len(gone)} of {left} changes {be} needed; {names} {do} not matter beyond the noise."


def _commit(trial: Trial) -> str | None:
    return trial.closed.commit if trial.closed is not None else None


def _message(trial: Trial, gone: tuple[int, ...]) -> str:
    names = ", ".join(map(str, gone)) or "none"
    return f"The minimal winner\n\nExperiment: {trial.event.experiment}\nChanges left out: {names}"
