"""Simplicity: a simpler candidate that is not worse than a margin may replace the incumbent, and is no improvement."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from fakes import Bench, Scripted, completed, config
from test_constraints import Sized, value

from agents.digest import digest
from jaxresearch.execution.base import RunRequest
from jaxresearch.experiment import RunOutcome, Verdict
from jaxresearch.proposal import Edit, Proposal
from jaxresearch.study.simplicity import margin_bpb
from jaxresearch.study.study import Study
from jaxresearch.study.summary import status_object


class Steady(Sized):
    """Seed noise of 0.01 that pairing takes out, residual noise of 0.0002: the margin is about 0.005."""

    async def run(self, request: RunRequest, on_progress) -> RunOutcome:
        self.requests.append(request)
        score = 1.5 - float(request.program.split(":")[1])
        noise = random.Random(request.identity).gauss(0, 0.0002) + random.Random(f"seed {request.seed}").gauss(0, 0.01)
        return completed(request, score + noise).model_copy(
            update={"parameters": int(value(self.texts[request.program], "SIZE", 1000))}
        )


def change(name: str, size: int, gain: float, *, parent: int = 0) -> Proposal:
    """The whole recipe anew: so many parameters, such a score."""
    text = f"GAIN = {gain}\nSIZE = {size}\nMODE = 'fine'\nNAME = '{name}'\n"
    search = "GAIN = 0.0\nMODE = 'fine'\n"
    return Proposal(parent=parent, hypothesis=name, edits=(Edit(path="models/recipe.py", search=search, replace=text),))


def run(tmp_path: Path, script: list[Proposal], executor: Steady | None = None, **settings: object) -> Study:
    bench = Bench(tmp_path / "study", config(len(script), **settings))
    return bench.run(strategy=Scripted(script, checks=False), executor=executor or Steady())


def sizes(*facts: tuple[int, float]) -> list[Proposal]:
    return [change(f"c{at}", size, gain) for at, (size, gain) in enumerate(facts)]


BETTER = (1000, 0.02)
"""The first keep: an incumbent written as all later ones are, so that only parameters tell them apart."""


def test_fewer_parameters_at_an_equal_score_replace_the_incumbent_but_are_no_improvement(tmp_path: Path):
    study = run(tmp_path, sizes(BETTER, (800, 0.0195)))
    better, simpler = study.history.contenders
    assert (better.verdict, simpler.verdict) == (Verdict.KEEP, Verdict.KEEP)
    assert simpler.decision.simpler
    assert simpler.experiment.reason.startswith(
        "kept: simpler, not better: 20.0% fewer parameters; against experiment 1"
    )
    assert len(simpler.experiment.runs) >= 2, "replicated like any keep"
    assert study.history.incumbent_number == 2
    assert study.history.reference_number == 1
    facts = status_object(study.history, "study")
    assert (facts["improvements"], facts["simpler_keeps"], facts["reference"]) == (1, 1, 1)


def test_a_run_that_may_be_kept_as_simpler_is_audited_for_that(tmp_path: Path):
    executor, never = Steady(), Steady()
    study = run(tmp_path / "a", sizes(BETTER, (800, 0.0195), (1200, 0.0190)), executor)
    asked = {entry.number: entry.experiment.program for entry in study.history.contenders}
    assert {request.program for request in executor.requests if request.simpler} == {asked[2]}
    run(tmp_path / "b", sizes(BETTER, (800, 0.0195)), never, acceptance={"simplicity": 0})
    assert not any(request.simpler for request in never.requests)


def test_how_small_a_gain_is_looked_into_follows_the_noise(tmp_path: Path):
    executor, greedy = Steady(), Steady()
    study = run(tmp_path / "a", sizes(BETTER, (1000, 0.0195), (1000, 0.0190)), executor)
    floors = [request.least_gain_bpb for request in executor.requests]
    kept = -study.history.entries[1].decision.difference
    assert floors[0] == 0, "before there is a pair nothing is known"
    assert 0 < floors[-1] < 0.0005 < kept
    run(tmp_path / "b", sizes(BETTER, (1000, 0.0195)), greedy, acceptance={"rule": "greedy"})
    assert not any(request.least_gain_bpb for request in greedy.requests)


def test_a_loss_beyond_the_margin_or_no_simplification_is_discarded(tmp_path: Path):
    margin = 0.5 * 0.012
    study = run(tmp_path, sizes(BETTER, (800, 0.02 - 3 * margin), (1000, 0.0199), (1200, 0.0195), (995, 0.0195)))
    assert [entry.verdict for entry in study.history.contenders[1:]] == [Verdict.DISCARD] * 4
    assert "It is simpler (20.0% fewer parameters), but" in study.history.entries[2].experiment.reason
    assert all("simpler" not in entry.experiment.reason for entry in study.history.entries[3:])


def test_losses_of_simplifications_do_not_add_up(tmp_path: Path):
    """Each loses 0.3 of the margin against the one before. The margin is against the best incumbent there ever was."""
    margin = margin_bpb(run(tmp_path / "first", sizes(BETTER)).history)
    step = 0.3 * margin
    study = run(tmp_path, sizes(BETTER, *[(1000 - 20 * at, round(0.02 - at * step, 6)) for at in range(1, 9)]))
    kept = [entry for entry in study.history.contenders if entry.decision.simpler]
    assert 1 <= len(kept) <= 3
    assert study.history.reference_number == 1
    best, last = study.history.entries[1].experiment, study.history.incumbent.experiment
    shared = best.scores.keys() & last.scores.keys()
    assert sum(last.scores[seed] - best.scores[seed] for seed in shared) / len(shared) < margin


def test_winning_back_what_a_simplification_lost_does_not_move_the_reference(tmp_path: Path):
    """Simplify and lose, then win back less than was lost: an improvement over the incumbent, not over the best."""
    margin = margin_bpb(run(tmp_path / "first", sizes(BETTER)).history)
    lost, won_back = round(0.02 - 0.6 * margin, 6), round(0.02 - 0.2 * margin, 6)
    study = run(
        tmp_path, sizes(BETTER, (800, lost), (800, won_back), (700, round(0.02 - 0.9 * margin, 6)), (800, 0.05))
    )
    decisions = [entry.decision for entry in study.history.contenders]
    assert [each.verdict for each in decisions[:3]] == [Verdict.KEEP] * 3
    assert not decisions[2].simpler
    assert decisions[2].reference == 1
    assert decisions[3].verdict in (Verdict.KEEP, Verdict.DISCARD)
    assert decisions[4].verdict is Verdict.KEEP
    assert decisions[4].reference is None
    assert study.history.reference_number == 5


def test_it_can_be_turned_off_and_greedy_has_none(tmp_path: Path):
    for name, settings in (("off", {"simplicity": 0}), ("greedy", {"rule": "greedy"})):
        study = run(tmp_path / name, sizes(BETTER, (800, 0.0195)), acceptance=settings)
        assert margin_bpb(study.history) is None
        assert not any(entry.decision.simpler for entry in study.history.contenders)


def test_the_strategy_is_told_the_rule(tmp_path: Path):
    strategy = Scripted(sizes(BETTER), checks=False)
    study = Bench(tmp_path / "study", config(1)).run(strategy=strategy, executor=Steady())
    assert strategy.views[0].simplicity_bpb == margin_bpb(study.history)
    assert "may replace the incumbent when it is shown to lose less than" in digest(strategy.views[0], 0)


def test_a_study_with_simpler_keeps_replays(tmp_path: Path):
    from jaxresearch.study.replay import _Replayer

    study = run(tmp_path, sizes(BETTER, (800, 0.0195)))
    replayer = _Replayer(study.workspace, Scripted([]), study.rule, study.instructions())
    events = list(study.events())
    replayer.start(events[0])

    async def derive() -> None:
        for at, stored in enumerate(events[1:], start=1):
            if stored.event.kind in ("proposed", "llm_called", "proposal_requested"):
                replayer._apply(stored)
            else:
                await replayer.advance(events, at)

    asyncio.run(derive())
    assert replayer.counts.verdicts == 3
