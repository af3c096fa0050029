"""confirm: opens the sealed test split for the baseline and the incumbent, on fresh seeds, and says what the gain is worth.

An opening is an event in the ledger. One that was cut short goes on; a second one is possible, and marked.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import Executor, RunProgress, RunSplit
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.statistics.confirmation import Gain, paired_gain
from jaxresearch.study.events import TestOpened, TestScored
from jaxresearch.study.history import History, Opening
from jaxresearch.study.journal import Journal
from jaxresearch.study.requests import attempt, request_of
from jaxresearch.study.steps import MAX_FAULTS
from jaxresearch.study.stopping import Interrupted, Stop

DEFAULT_SEEDS = 5


async def confirm(journal: Journal, executor: Executor, seeds: Sequence[int], stop: Stop) -> None:
    """Open the test, or go on with an opening that is not done, and score baseline and incumbent on it.

    Raises `Interrupted` when `stop` is requested, and `JaxresearchError` when there is nothing to confirm.
    """
    _refuse_unready(journal.history)
    if _unfinished(journal.history) is None:
        numbers = tuple(sorted({0, journal.history.incumbent_number}))
        opening = len(journal.history.openings) + 1
        journal.record(TestOpened(opening=opening, experiments=numbers, seeds=tuple(seeds)))
    while (missing := _missing(journal.history.openings[-1])) is not None:
        if stop.requested:
            raise Interrupted
        number, seed = missing
        request = request_of(journal.history, journal.history.entries[number], seed, split="test")

        def on_progress(progress: RunProgress, number: int = number, seed: int = seed) -> None:
            journal.reporter.on_progress(number, seed, progress)

        outcome = await stop.obey(attempt(executor, request, on_progress), requests=2)
        journal.record(TestScored(number=number, outcome=outcome))
        _refuse_lost(journal.history.openings[-1])


def is_confirmed(history: History) -> bool:
    """Whether the test has been opened for the present incumbent, and every run of it is there."""
    last = history.openings[-1] if history.openings else None
    return last is not None and history.incumbent_number in last.event.experiments and _missing(last) is None


def confirmation_object(history: History, study: str) -> dict[str, Any]:
    """What `confirm --json` prints of the last opening. Gains are in bits per byte; above zero is better."""
    opening = history.openings[-1]
    baseline, incumbent = opening.event.experiments[0], opening.event.experiments[-1]
    gain, validation = _gain(opening, "test"), _gain(opening, "validation")
    claimed = paired_gain(history.baseline.experiment.scores, history.entries[incumbent].experiment.scores)
    return {
        "study": study,
        "opening": opening.event.opening,
        "finished": history.stopped is not None and history.stopped.finished,
        "seeds": list(opening.event.seeds),
        "baseline": _arm(opening, baseline),
        "incumbent": _arm(opening, incumbent),
        "gain": asdict(gain) if gain is not None else None,
        "validation_gain": asdict(validation) if validation is not None else None,
        "claimed_gain_bpb": claimed.mean_bpb if gain is not None and claimed is not None else None,
        "conclusion": conclusion(history),
    }


def conclusion(history: History) -> str:
    """The last opening in one sentence."""
    opening = history.openings[-1]
    baseline, incumbent = opening.event.experiments[0], opening.event.experiments[-1]
    again = f" The test was open before: this is opening {opening.event.opening}." if opening.event.opening > 1 else ""
    if baseline == incumbent:
        return f"Nothing was kept, so there is no gain to confirm.{again}"
    gain = _gain(opening, "test")
    if gain is None or gain.p_value is None or gain.low_bpb is None or gain.high_bpb is None:
        return f"Too few runs came through to say whether the gain holds.{again}"
    interval = f"{gain.mean_bpb:.4f} bpb (95 %: {gain.low_bpb:.4f} to {gain.high_bpb:.4f}, {gain.pairs} fresh seeds)"
    if failed := _failures(opening, incumbent):
        of = f"{len(failed)} of {len(opening.event.seeds)} fresh seeds"
        return (
            f"Not confirmed: experiment {incumbent} gave no score on {of} ({failed[0]}); which those are may be its own "
            f"choice. On the others its gain on unseen text is {interval}.{again}"
        )
    if gain.low_bpb > 0:
        return f"Confirmed on unseen text: experiment {incumbent} is better than the baseline by {interval}.{again}"
    if gain.high_bpb < 0:
        return f"Refuted on unseen text: experiment {incumbent} is worse than the baseline, by {interval}.{again}"
    return f"Not confirmed: on unseen text the gain of experiment {incumbent} is {interval}.{again}"


def said_of_test(history: History) -> str | None:
    """What the last opening came to, or how far it is; None when the test is still sealed."""
    if not history.openings:
        return None
    last = history.openings[-1]
    if _missing(last) is not None:
        asked = len(last.event.seeds) * len(last.event.experiments)
        return f"Not done: {len(last.outcomes)} of {asked} runs are scored. `jaxresearch confirm` goes on."
    return conclusion(history)


def _arm(opening: Opening, number: int) -> dict[str, Any]:
    test = list(_scores(opening, number, "test").values())
    val = list(_scores(opening, number, "validation").values())
    return {
        "experiment": number,
        "test_bpb": statistics.fmean(test) if test else None,
        "test_sem": statistics.stdev(test) / len(test) ** 0.5 if len(test) > 1 else None,
        "val_bpb": statistics.fmean(val) if test else None,
        "gap_bpb": statistics.fmean(test) - statistics.fmean(val) if test else None,
        "runs": len(test),
        "failed": _failures(opening, number),
    }


def _failures(opening: Opening, number: int) -> list[str]:
    """Why the runs of experiment `number` that gave no score gave none."""
    return [run.reason for seed in opening.event.seeds if isinstance(run := opening.run(number, seed), FailedRun)]


def _gain(opening: Opening, split: RunSplit) -> Gain | None:
    """Of the incumbent over the baseline; None when they are one, or share no seed that came through."""
    baseline, incumbent = opening.event.experiments[0], opening.event.experiments[-1]
    if baseline == incumbent:
        return None
    return paired_gain(_scores(opening, baseline, split), _scores(opening, incumbent, split))


def _scores(opening: Opening, number: int, split: RunSplit) -> dict[int, float]:
    """Bits per byte on `split` by seed, of the runs that came through."""
    scores = {}
    for seed in opening.event.seeds:
        run = opening.run(number, seed)
        score = None if not isinstance(run, CompletedRun) else run.test_bpb if split == "test" else run.val_bpb
        if score is not None:
            scores[seed] = score
    return scores


def _unfinished(history: History) -> Opening | None:
    """The last opening, when it is not done and the incumbent has not changed since."""
    if not history.openings or _missing(history.openings[-1]) is None:
        return None
    opening = history.openings[-1]
    return opening if history.incumbent_number in opening.event.experiments else None


def _missing(opening: Opening) -> tuple[int, int] | None:
    """The next (experiment, seed): seed by seed, so that drift of the machine hits both alike."""
    wanted = ((number, seed) for seed in opening.event.seeds for number in opening.event.experiments)
    return next((each for each in wanted if opening.run(*each) is None), None)


def _refuse_unready(history: History) -> None:
    if history.baseline.verdict is not Verdict.KEEP:
        raise JaxresearchError(
            "The study's baseline has no score.", fix="`jaxresearch status STUDY` says why, and what to do."
        )


def _refuse_lost(opening: Opening) -> None:
    last = [outcome for _, outcome in opening.outcomes[-MAX_FAULTS:]]
    lost = [each for each in last if isinstance(each, FailedRun) and each.verdict is Verdict.INFRASTRUCTURE]
    if len(lost) == MAX_FAULTS:
        raise JaxresearchError(
            f"{MAX_FAULTS} runs in a row were lost: {lost[-1].reason}.",
            fix="Repair that, then confirm again: it goes on.",
        )
