"""What interleaving does for budgets in seconds: keeps and runs on a machine that drifts, by simulation of whole studies.

    python benchmarks/interleaving.py [--studies 40]

The laboratory's own steps and rules (`paired`) decide; only the scores are made up: experiment + seed effect + residual +
drift, which makes each run of the study worse (below zero: better) than the one before by a part of sigma, the standard
deviation of a paired difference. A study has 3 baseline seeds and 8 contenders, all of one effect against the incumbent.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

from scipy import stats

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import TracedCandidate
from jaxresearch.experiment import Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.statistics.rules import make_rule
from jaxresearch.study.events import Event, Proposed, RunFinished, StudyCreated, Traced
from jaxresearch.study.history import History, fold
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.pairing import search_identity
from jaxresearch.study.steps import AskStrategy, Decide, RunCandidate, TraceCandidate, next_step
from jaxresearch.synthetic import completed_run

SIGMA_BPB, SEED_SD_BPB, EXPERIMENTS = 0.002, 0.010, 8


@dataclass
class Tally:
    """Over all contenders: how many there were, how many were kept, and runs of theirs and of incumbents for them."""

    contenders: int = 0
    kept: int = 0
    own_runs: int = 0
    incumbent_runs: int = 0


def play(effect_sigma: float, drift_sigma: float, interleave: int, studies: int) -> Tally:
    tally = Tally()
    for seed in range(studies):
        play_study(effect_sigma, drift_sigma, interleave, random.Random(seed), tally)
    return tally


def play_study(
    effect_sigma: float, drift_sigma: float, interleave: int, generator: random.Random, tally: Tally
) -> None:
    history = _created(interleave)
    rule = make_rule(history.config)
    true, of_seed = {0: 1.5}, dict[int, float]()
    while True:
        match next_step(history, rule, wall_seconds=0.0):
            case TraceCandidate(number=number):
                event: Event = Traced(number=number, commit="c", tree=f"{number}", outcome=_traced(number))
            case RunCandidate(number=number, seed=seed):
                of_seed.setdefault(seed, generator.gauss(0, SEED_SD_BPB))
                residual = generator.gauss(0, SIGMA_BPB / 2**0.5)
                score = true[number] + of_seed[seed] + residual + drift_sigma * SIGMA_BPB * history.trained
                identity = search_identity(history, history.entries[number], seed)
                event = RunFinished(number=number, outcome=completed_run(score, seed, identity=identity))
            case Decide(decision=decision):
                event = decision
            case AskStrategy(round=round_number):
                number, parent = len(history.entries), history.incumbent_number
                true[number] = true[parent] - effect_sigma * SIGMA_BPB
                event = Proposed(
                    round=round_number, number=number, proposal=Proposal(parent=parent, hypothesis=f"{number}")
                )
            case _:
                break
        own = isinstance(event, RunFinished) and history.pending is not None and history.pending.number == event.number
        tally.own_runs += own and event.number > 0
        tally.incumbent_runs += isinstance(event, RunFinished) and not own
        history = _moved(history, event)
    tally.contenders += len(history.contenders)
    tally.kept += history.verdicts[Verdict.KEEP]


def _created(interleave: int) -> History:
    acceptance = {"interleave": interleave, "simplicity": 0}
    config = StudyConfig.model_validate(
        {"budget": "300s", "experiments": EXPERIMENTS, "acceptance": acceptance, "oversight": {"quarantine": False}}
    )
    nothing = dict.fromkeys(("subject", "corpus", "tokenizer", "instructions", "jaxresearch", "jax", "python"), "")
    return fold([StoredEvent(1, 0.0, "0", StudyCreated(config=config, **nothing))])


def _moved(history: History, event: Event) -> History:
    return history.apply(StoredEvent(history.seq + 1, 0.0, f"{history.seq}", event))


def _traced(number: int) -> TracedCandidate:
    return TracedCandidate(
        program=f"{number}",
        traced={},
        hyperparameters=(),
        phases=((1.0, 8, 256),),
        step_flops=(1.0,),
        parameters=1,
        sandbox="",
        trace_seconds=0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40)
    studies = parser.parse_args().studies
    print("| effect | drift of a run | `interleave` | kept | 95 % interval | runs each | incumbent runs each |")
    print("|---|---|---|---|---|---|---|")
    for effect in (0.0, 2.0):
        for drift in (0.0, 0.25, -0.25):
            for interleave in (0, 4):
                found = play(effect, drift, interleave, studies)
                interval = stats.binomtest(found.kept, found.contenders).proportion_ci()
                print(
                    f"| {effect:g} sigma | {drift:+g} sigma | {interleave} | {found.kept / found.contenders:.1%} "
                    f"| {interval.low:.1%} to {interval.high:.1%} | {found.own_runs / found.contenders:.2f} "
                    f"| {found.incumbent_runs / found.contenders:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
