"""Results: what a tournament came to, from the ledgers of its studies. Complete repeats count.

A repeat in which an arm's final runs gave no score is left out whole, and the warning says so; also where some did not.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxresearch.experiment import CompletedRun, Verdict
from jaxresearch.statistics.comparison import contrasts, interval, planned, sentence, warning
from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.study.confirm import is_confirmed
from jaxresearch.study.events import Decided
from jaxresearch.study.history import History, fold
from jaxresearch.study.identity import run_seeds
from jaxresearch.study.predictions import calibration
from jaxresearch.study.study import Study
from jaxresearch.tournament.accounts import Account, account, band, repair_rate
from jaxresearch.tournament.plan import Arm, budget_text, control_of
from jaxresearch.tournament.tournament import Tournament

_ALONG = ("experiments", "accelerator_seconds", "flops", "llm_cost_usd")
"""What the best-so-far curve is drawn over."""


@dataclass(frozen=True)
class Point:
    """The incumbent after one verdict: what was used by then, and its val_bpb, as a paired gain on the baseline.

    The baseline counts with the first seeds, which all arms of a repeat share; what else it ran, for later pairs, differs.
    """

    experiments: int
    accelerator_seconds: float
    flops: float
    llm_cost_usd: float
    val_bpb: float


@dataclass(frozen=True)
class ArmRepeat:
    """One arm in one repeat, finished. val_bpb, test_bpb: of its incumbent, means over fresh seeds.

    val_change, test_change: against the baseline on the same seeds, below zero is better. auc: mean best-so-far val_bpb
    over the binding budget. unscored: of the fresh seeds, those on which the incumbent gave no score.
    """

    arm: str
    repeat: int
    val_bpb: float
    test_bpb: float
    val_change: float
    test_change: float
    auc: float
    curve: tuple[Point, ...]
    experiments: int
    verdicts: dict[str, int]
    failed_proposals: int
    accelerator_seconds: float
    flops: float
    llm_cost_usd: float
    llm_tokens: int
    account: Account
    unscored: int


def results(tournament: Tournament) -> dict[str, Any]:
    """The object of `compare --json`; see CLI.md. Differences and changes are in bits per byte, below zero is better."""
    finished = _finished(tournament)
    every = range(tournament.config.tournament.repeats)
    scored = {key: one for key, one in finished.items() if one is not None}
    repeats = [repeat for repeat in every if all((arm.name, repeat) in scored for arm in tournament.arms)]
    of = {arm.name: [scored[arm.name, repeat] for repeat in repeats] for arm in tournament.arms}
    left_out = _left_out([key for key, one in finished.items() if one is None])
    names, control = [arm.name for arm in tournament.arms], control_of(tournament.arms)
    facts: dict[str, Any] = {
        "tournament": str(tournament.folder),
        "strategies": [_strategy(arm, of[arm.name]) for arm in tournament.arms],
        "pairwise": [],
        "pairwise_test": [],
        "control": control,
        "experiments_each": tournament.config.experiments if tournament.config.is_capped else None,
        "budget": budget_text(tournament.config),
        "run_budget": tournament.config.budget,
        "repeats": len(repeats),
        "planned_repeats": tournament.config.tournament.repeats,
        "finished": all((arm.name, repeat) in finished for arm in tournament.arms for repeat in every),
        "warning": left_out,
        "conclusion": "No repeat is complete yet.",
    }
    if not repeats:
        return facts
    pairs = planned(names, control)
    val = {name: [each.val_change for each in runs] for name, runs in of.items()}
    test = {name: [each.test_change for each in runs] for name, runs in of.items()}
    found = contrasts(val, pairs)
    return facts | {
        "pairwise": [asdict(each) for each in found],
        "pairwise_test": [asdict(each) for each in contrasts(test, pairs)],
        "experiments_each": {name: [each.experiments for each in runs] for name, runs in of.items()},
        "warning": " ".join(filter(None, [left_out, _partly(of), warning(len(repeats), len(pairs))])) or None,
        "conclusion": sentence(found, val),
    }


def arm_repeats(tournament: Tournament) -> list[ArmRepeat]:
    """All that are finished, for tables and plots."""
    return [one for one in _finished(tournament).values() if one is not None]


def _left_out(unscored: list[tuple[str, int]]) -> str | None:
    """Who is why which repeats do not count. It may favour that arm: it had no score to be measured by."""
    if not unscored:
        return None
    said = "; ".join(f"repeat {repeat}, as {arm}'s final runs gave no score" for arm, repeat in unscored)
    return f"Left out, which may favour who failed: {said}."


def _partly(of: dict[str, list[ArmRepeat]]) -> str | None:
    """Whose final runs are fewer than asked. A candidate sees its seed and its own loss, and may choose where to fail."""
    fewer = [each for runs in of.values() for each in runs if each.unscored]
    if not fewer:
        return None
    said = "; ".join(f"{each.arm} in repeat {each.repeat} ({each.unscored})" for each in fewer)
    return f"Final runs without a score, which may favour who failed: {said}."


def _finished(tournament: Tournament) -> dict[tuple[str, int], ArmRepeat | None]:
    """By arm and repeat, what is done; None where no fresh seed gave a score of both baseline and incumbent."""
    found: dict[tuple[str, int], ArmRepeat | None] = {}
    for repeat in range(tournament.config.tournament.repeats):
        for arm in tournament.arms:
            study = tournament.study(arm, repeat)
            if study is None:
                continue
            try:
                if is_confirmed(study.history):
                    found[arm.name, repeat] = _arm_repeat(tournament, arm, repeat, study)
            finally:
                study.close()
    return found


def _arm_repeat(tournament: Tournament, arm: Arm, repeat: int, study: Study) -> ArmRepeat | None:
    history = study.history
    opening = history.openings[-1]
    runs = {
        (number, seed): run
        for number in opening.event.experiments
        for seed in opening.event.seeds
        if isinstance(run := opening.run(number, seed), CompletedRun) and run.test_bpb is not None
    }
    seeds = [s for s in opening.event.seeds if all((number, s) in runs for number in opening.event.experiments)]
    if not seeds:
        return None
    baseline, incumbent = opening.event.experiments[0], opening.event.experiments[-1]

    def mean(number: int, split: str) -> float:
        of_split = [runs[number, seed].val_bpb if split == "val" else runs[number, seed].test_bpb for seed in seeds]
        return statistics.fmean(score for score in of_split if score is not None)

    curve = _curve(study)
    return ArmRepeat(
        arm=arm.name,
        repeat=repeat,
        val_bpb=mean(incumbent, "val"),
        test_bpb=mean(incumbent, "test"),
        val_change=mean(incumbent, "val") - mean(baseline, "val"),
        test_change=mean(incumbent, "test") - mean(baseline, "test"),
        auc=_auc(curve, tournament),
        curve=curve,
        experiments=sum(entry.verdict is not None for entry in history.contenders),
        verdicts={str(verdict): count for verdict, count in history.verdicts.items()},
        failed_proposals=history.failed_proposals,
        accelerator_seconds=history.costs.paid_seconds,
        flops=history.costs.flops,
        llm_cost_usd=history.costs.llm_cost_usd,
        llm_tokens=history.costs.llm_tokens,
        account=account(history, study.events()),
        unscored=sum((incumbent, seed) not in runs for seed in opening.event.seeds),
    )


def _curve(study: Study) -> tuple[Point, ...]:
    """The best so far after every verdict, in the light of all runs that the study made in the end."""
    final, points, events = study.history, [], list(study.events(whole=False))
    history = fold(events[:1])
    for stored in events[1:]:
        history = history.apply(stored)
        if isinstance(stored.event, Decided):
            points.append(_point(history, final))
    return tuple(points)


def _point(history: History, final: History) -> Point:
    baseline, best = final.baseline.experiment, final.entries[history.incumbent_number].experiment
    gain = paired_gain(baseline.scores, best.scores)
    costs, shared = history.costs, [baseline.scores[seed] for seed in run_seeds(final.config)]
    return Point(
        experiments=sum(entry.verdict is not None for entry in history.contenders),
        accelerator_seconds=costs.paid_seconds,
        flops=costs.flops,
        llm_cost_usd=costs.llm_cost_usd,
        val_bpb=statistics.fmean(shared) - (gain.mean_bpb if gain is not None else 0.0),
    )


def _auc(curve: tuple[Point, ...], tournament: Tournament) -> float:
    """Mean of the best-so-far val_bpb from the baseline's verdict to the end of the binding budget, a step function."""
    part = tournament.config.tournament
    if part.accelerator_seconds is not None:
        end, used = part.accelerator_seconds, [point.accelerator_seconds for point in curve]
    elif part.flops is not None:
        end, used = part.flops, [point.flops for point in curve]
    else:
        end, used = float(tournament.config.experiments), [float(point.experiments) for point in curve]
    edges = np.minimum([*used, max(end, used[0])], max(end, used[0]))
    widths = np.diff(edges)
    values = np.array([point.val_bpb for point in curve])
    return float(np.average(values, weights=widths)) if widths.sum() > 0 else float(values[-1])


def _strategy(arm: Arm, runs: list[ArmRepeat]) -> dict[str, Any]:
    def over(values: list[float]) -> dict[str, float | None] | None:
        return asdict(interval(values)) if values else None

    tried = sum(each.experiments for each in runs)
    asked = tried + sum(each.failed_proposals for each in runs)
    counts = {verdict: sum(each.verdicts[verdict] for each in runs) for verdict in map(str, Verdict)}
    return {
        "name": arm.name,
        "strategy": arm.strategy,
        "llm": arm.llm,
        "repeats": len(runs),
        "best_val_bpb": over([each.val_bpb for each in runs]),
        "anytime_auc": over([each.auc for each in runs]),
        "test_bpb": over([each.test_bpb for each in runs]),
        "val_change": over([each.val_change for each in runs]),
        "test_change": over([each.test_change for each in runs]),
        "experiments": over([float(each.experiments) for each in runs]),
        "rates": {verdict: count / tried for verdict, count in counts.items()} if tried else {},
        "failed_proposal_rate": 1 - tried / asked if asked else 0.0,
        "repair_rate": repair_rate([each.account for each in runs]),
        "calibration": calibration([each.account.predictions for each in runs]),
        "accelerator_seconds_per_experiment": sum(each.accelerator_seconds for each in runs) / tried if tried else None,
        "accelerator_seconds_per_keep": sum(each.accelerator_seconds for each in runs) / counts["keep"]
        if counts["keep"]
        else None,
        "llm_cost_usd": sum(each.llm_cost_usd for each in runs),
        "llm_tokens": sum(each.llm_tokens for each in runs),
        "accelerator_seconds": sum(each.accelerator_seconds for each in runs),
        "flops": sum(each.flops for each in runs),
        "best_so_far": {over: band([each.curve for each in runs], over) for over in _ALONG},
        "curves": [[asdict(point) for point in each.curve] for each in runs],
    }
