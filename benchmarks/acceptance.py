"""How the acceptance rules behave: false keeps, power and runs, by simulation of whole studies.

    python benchmarks/acceptance.py [--studies 2000]

Scores are normal: experiment + seed effect (sd 0.012) + residual. Effects are in units of sigma, the standard deviation
of a paired difference (0.005 bpb here). A study has 3 baseline seeds and 8 contenders, all of one effect against whatever
is the incumbent; an incumbent's missing pairs are run and counted.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
from scipy import stats

from jaxresearch.statistics.acceptance import Acceptance, Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noise import NoiseFloor, Scores, contest_noise, pair_noise
from jaxresearch.statistics.rules import STUDY_ALPHA, Fixed, Greedy, Paired

SEED_SD_BPB, PAIR_SD_BPB = 0.012, 0.005
EXPERIMENTS, BASELINE_SEEDS = 8, 3


@dataclass
class Tally:
    """What became of the contenders. runs: of contenders. extra: of incumbents, for pairs that they lacked."""

    kept: list[bool] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    extra: int = 0
    studies_with_keep: int = 0
    studies: int = 0

    @property
    def keep_rate(self) -> float:
        return float(np.mean(self.kept))

    @property
    def runs_each(self) -> float:
        return float(np.mean(self.runs))

    @property
    def runs_of_kept(self) -> float:
        kept = [runs for runs, keep in zip(self.runs, self.kept, strict=True) if keep]
        return float(np.mean(kept)) if kept else float("nan")


class Laboratory:
    """Scores of one study: true means, seed effects that all experiments share, residuals."""

    def __init__(self, generator: np.random.Generator, seed_sd: float, pair_sd: float) -> None:
        self._generator, self._seed_sd, self._pair_sd = generator, seed_sd, pair_sd
        self._seed_effects: dict[int, float] = {}

    def score(self, mean: float, seed: int) -> float:
        if seed not in self._seed_effects:
            self._seed_effects[seed] = self._generator.normal(0, self._seed_sd)
        return mean + self._seed_effects[seed] + self._generator.normal(0, self._pair_sd / np.sqrt(2))


def play_study(
    rule: Acceptance,
    effects_sigma: list[float],
    generator: np.random.Generator,
    tally: Tally,
    *,
    seed_sd: float = SEED_SD_BPB,
    pair_sd: float = PAIR_SD_BPB,
    copies: int = 0,
    copy_sd_sigma: float = 0.0,
) -> None:
    """One study: contender i is better than its incumbent by effects_sigma[i] * pair_sd.

    copies: near copies of the baseline that ran before, whose scores move by copy_sd_sigma * pair_sd.
    """
    laboratory, mean = Laboratory(generator, seed_sd, pair_sd), 1.5
    incumbent = {seed: laboratory.score(mean, seed) for seed in range(BASELINE_SEEDS)}
    rows, kept_any = [incumbent], False
    for _ in range(copies):
        rows.append({seed: score + generator.normal(0, copy_sd_sigma * pair_sd) for seed, score in incumbent.items()})
    for effect in effects_sigma:
        contender: dict[int, float] = {}
        rows.append(contender)
        while True:
            answer = rule.decide(contender, incumbent, _noise(contender, incumbent, rows))
            match answer:
                case RunSeed(seed=seed):
                    contender[seed] = laboratory.score(mean - effect * pair_sd, seed)
                case RunIncumbent(seed=seed):
                    incumbent[seed] = laboratory.score(mean, seed)
                    tally.extra += 1
                case Keep() | Discard():
                    break
                case _:
                    assert_never(answer)
        kept = isinstance(answer, Keep)
        tally.kept.append(kept)
        tally.runs.append(len(contender))
        kept_any |= kept
        if kept:
            incumbent, mean = contender, mean - effect * pair_sd
    tally.studies += 1
    tally.studies_with_keep += kept_any


def _noise(contender: Scores, incumbent: Scores, rows: list[dict[int, float]]) -> NoiseFloor | None:
    others, pooled = pair_noise([row for row in rows if row is not contender]), pair_noise(rows)
    least_bpb = pooled.low_bpb if pooled is not None else 0.0
    return contest_noise(pair_noise([contender, incumbent]), others, pooled, least_bpb=least_bpb)


def play(
    rule: Acceptance, effect_sigma: float, studies: int, *, seed: int = 0, experiments: int = EXPERIMENTS
) -> Tally:
    """`studies` studies in which every contender has `effect_sigma`."""
    generator, tally = np.random.default_rng(seed), Tally()
    for _ in range(studies):
        play_study(rule, [effect_sigma] * experiments, generator, tally)
    return tally


def first_win(gain_sigma: float, studies: int, *, seed: int = 1) -> Tally:
    """The hard case: the study's very first contender is the win, and no pair has been replicated before it."""
    return play(Paired(), gain_sigma, studies, seed=seed, experiments=1)


def after_copies(copies: int, studies: int, *, seed: int = 4) -> Tally:
    """Contenders of no effect, after changes of which each moves scores by a hundredth of sigma only."""
    generator, tally = np.random.default_rng(seed), Tally()
    for _ in range(studies):
        play_study(Paired(), [0.0] * EXPERIMENTS, generator, tally, copies=copies, copy_sd_sigma=0.01)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    rules = {"paired": Paired(), "fixed, 3 runs": Fixed(), "fixed, 6 runs": Fixed(runs=6), "greedy": Greedy()}
    print("| rule | effect | kept | 95 % interval | runs each | runs of a kept one | incumbent runs each |")
    print("|---|---|---|---|---|---|---|")
    for name, rule in rules.items():
        for effect in (0.0, 0.5, 1.0, 2.0, 4.0):
            tally = play(rule, effect, studies if effect == 0 else max(1, studies // 4))
            count, kept = len(tally.kept), sum(tally.kept)
            interval = stats.binomtest(kept, count).proportion_ci()
            print(
                f"| {name} | {effect:g} sigma | {tally.keep_rate:.2%} | {interval.low:.2%} to {interval.high:.2%} "
                f"| {tally.runs_each:.2f} | {tally.runs_of_kept:.2f} | {tally.extra / count:.2f} |"
            )
    print("\nThe first contender of a study, `paired`:\n\n| effect | kept | runs of a kept one |\n|---|---|---|")
    for effect in (1.0, 2.0, 4.0, 10.0, 20.0):
        tally = first_win(effect, max(1, studies // 2))
        print(f"| {effect:g} sigma | {tally.keep_rate:.1%} | {tally.runs_of_kept:.2f} |")
    print("\nContenders of no effect after near copies of the baseline, `paired`:\n\n| copies | kept |\n|---|---|")
    for copies in (0, 2, 5, 20):
        print(f"| {copies} | {after_copies(copies, max(1, studies // 4)).keep_rate:.1%} |")
    study = play(Paired(alpha=STUDY_ALPHA / EXPERIMENTS), 0.0, studies, seed=2)
    print(f"\ncontrol: study. A null study keeps anything: {study.studies_with_keep / study.studies:.2%}")


if __name__ == "__main__":
    main()
