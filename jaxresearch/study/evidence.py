"""Evidence: what a study's runs say about noise, put so that statistics needs to know nothing of studies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.statistics.noise import NoiseFloor, pair_noise
from jaxresearch.study.events import TraceOutcome
from jaxresearch.study.history import Entry, History
from jaxresearch.study.trial import Trial

Kind = Hashable


def kind_of(entry: Entry) -> Kind:
    """Experiments of one kind share init and batches on a seed: equal parameter count, equal phases."""
    return _kind_of_trace(entry.trace)


def _kind_of_trace(trace: TraceOutcome | None) -> Kind:
    return (trace.parameters, trace.phases) if isinstance(trace, TracedCandidate) else None


def contest_noise(history: History, contender: Entry, incumbent: Entry) -> NoiseFloor | None:
    """Standard deviation of a paired difference between these two, pooled over the study's pairs of their sort.

    Of one kind: seeds move all experiments of that kind together, so every kind has seed effects of its own.
    Of two kinds: only the data order is shared, so differences spread more. One experiment stands for each kind (these
    two for theirs, else the one with the most scores), and all share the seed effects. Where seeds have no common
    effect across kinds, the estimate says so: it is then as large as between unpaired runs.
    """
    believed = [entry for entry in history.entries if entry.believed]
    scored = [entry for entry in believed if len(entry.experiment.scores) >= 2 or entry is contender]
    if kind_of(contender) == kind_of(incumbent):
        return pair_noise([_blocked(entry) for entry in scored])
    chosen: dict[Kind, Entry] = {}
    for entry in sorted(scored, key=lambda entry: len(entry.experiment.scores)):
        chosen[kind_of(entry)] = entry
    chosen |= {kind_of(incumbent): incumbent, kind_of(contender): contender}
    return pair_noise([entry.experiment.scores for entry in chosen.values()])


def study_pair_noise(history: History) -> NoiseFloor | None:
    """Standard deviation of a paired difference between experiments of one kind, for people to see."""
    return pair_noise(_blocked(entry) for entry in history.entries if entry.believed)


def trial_noise(history: History, trial: Trial, winner: str, arm: str) -> NoiseFloor | None:
    """Standard deviation of a paired difference between two arms of `trial`.

    Of one kind: pooled with all pairs of the study and the trial of that sort. Of two kinds: from these two arms alone.
    """
    kinds = {name: _kind_of_trace(trace) for name, trace in trial.traces.items()}
    if kinds[winner] != kinds[arm]:
        return pair_noise([trial.scores(winner), trial.scores(arm)])
    rows = [{(kinds[name], seed): score for seed, score in trial.scores(name).items()} for name in kinds]
    return pair_noise([*rows, *(_blocked(entry) for entry in history.entries)])


def tested(entries: Iterable[Entry]) -> int:
    """How many contenders an acceptance rule has judged."""
    return sum(entry.decision is not None and entry.decision.difference is not None for entry in entries)


def _blocked(entry: Entry) -> Mapping[Hashable, float]:
    kind = kind_of(entry)
    return {(kind, seed): score for seed, score in entry.experiment.scores.items()}
