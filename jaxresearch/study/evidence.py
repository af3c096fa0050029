"""Evidence: what a study's runs say about noise, put so that statistics needs to know nothing of studies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.statistics import noise
from jaxresearch.statistics.noise import NoiseFloor, Scores, pair_noise
from jaxresearch.study.entry import Entry
from jaxresearch.study.events import TraceOutcome
from jaxresearch.study.history import History
from jaxresearch.study.pairing import pairs_of, reach
from jaxresearch.study.trial import Trial

Kind = Hashable


def kind_of(entry: Entry) -> Kind:
    """Experiments of one kind share init and batches on a seed: equal parameter count, equal phases."""
    return _kind_of_trace(entry.trace)


def _kind_of_trace(trace: TraceOutcome | None) -> Kind:
    return (trace.parameters, trace.phases) if isinstance(trace, TracedCandidate) else None


def blocks(history: History, contender: Entry | None = None, incumbent: Entry | None = None) -> list[Scores]:
    """Element i: the scores of experiment i by block, which is their seed.

    Under a budget in seconds it is a seed at one time: the runs that are paired with one run of an incumbent. Each
    experiment is paired with the incumbent that it was judged against, `contender` with the one given.
    """
    if not reach(history):
        return [entry.experiment.scores for entry in history.entries]
    found: list[dict[Hashable, float]] = [{} for _ in history.entries]
    block_of: dict[int, int] = {}  # by the place of a run
    for entry in history.contenders:
        asked = contender is not None and entry.number == contender.number
        rival = incumbent if asked else _judge_of(history, entry)
        if rival is None:
            continue
        for seed, pair in pairs_of(history, entry, rival).items():
            block = block_of.get(pair.their_place, pair.their_place)
            block_of[pair.our_place] = block
            found[entry.number][seed, block] = pair.ours_bpb
            found[rival.number][seed, block] = pair.theirs_bpb
    return list(found)


def _judge_of(history: History, entry: Entry) -> Entry | None:
    if entry.decision is None:
        return history.incumbent
    return None if entry.decision.incumbent is None else history.entries[entry.decision.incumbent]


def contest_noise(history: History, contender: Entry, incumbent: Entry) -> NoiseFloor | None:
    """Standard deviation of a paired difference between these two, pooled over the study's pairs of their sort, unless
    their own pairs spread otherwise than those.

    Of one kind: seeds move all experiments of that kind together, so every kind has seed effects of its own.
    Of two kinds: only the data order is shared, so differences spread more. One experiment stands for each kind (these
    two for theirs, else the one with the most scores), and all share the seed effects. Where seeds have no common
    effect across kinds, the estimate says so: it is then as large as between unpaired runs.
    """
    scores = blocks(history, contender, incumbent)
    believed = [entry for entry in history.entries if entry.believed]
    scored = [entry for entry in believed if len(scores[entry.number]) >= 2 or entry is contender]
    pairs = pair_noise([scores[contender.number], scores[incumbent.number]])
    study = pair_noise(_of_kind(entry, scores) for entry in believed)
    limits = {"level": history.config.acceptance.own_spread, "least_bpb": study.low_bpb if study is not None else 0.0}

    def pooled_over(rows: Mapping[int, Scores]) -> NoiseFloor | None:
        others = pair_noise([row for number, row in rows.items() if number != contender.number])
        return noise.contest_noise(pairs, others, pair_noise(rows.values()), **limits)

    if kind_of(contender) == kind_of(incumbent):
        return pooled_over({entry.number: _of_kind(entry, scores) for entry in scored})
    chosen: dict[Kind, Entry] = {}
    for entry in sorted(scored, key=lambda entry: len(scores[entry.number])):
        chosen[kind_of(entry)] = entry
    chosen |= {kind_of(incumbent): incumbent, kind_of(contender): contender}
    return pooled_over({entry.number: scores[entry.number] for entry in chosen.values()})


def study_pair_noise(history: History) -> NoiseFloor | None:
    """Standard deviation of a paired difference between experiments of one kind, for people to see."""
    scores = blocks(history)
    return pair_noise(_of_kind(entry, scores) for entry in history.entries if entry.believed)


def trial_noise(history: History, trial: Trial, winner: str, arm: str) -> NoiseFloor | None:
    """Standard deviation of a paired difference between two arms of `trial`.

    Of one kind: pooled with all believed pairs of the study and all of the trial of that sort. Of two kinds: from these two
    arms alone.
    """
    kinds = {name: _kind_of_trace(trace) for name, trace in trial.traces.items()}
    if kinds[winner] != kinds[arm]:
        return pair_noise([trial.scores(winner), trial.scores(arm)])
    rows = [{(kinds[name], seed): score for seed, score in trial.scores(name).items()} for name in kinds]
    scores = blocks(history)
    return pair_noise([*rows, *(_of_kind(entry, scores) for entry in history.entries if entry.believed)])


def tested(entries: Iterable[Entry]) -> int:
    """How many contenders an acceptance rule has judged."""
    return sum(entry.decision is not None and entry.decision.difference is not None for entry in entries)


def _of_kind(entry: Entry, scores: list[Scores]) -> Scores:
    kind = kind_of(entry)
    return {(kind, block): score for block, score in scores[entry.number].items()}
