"""What scores are worth under seed noise: paired effects, their noise, and posterior means instead of lucky scores.

The model: theta_i, the true val_bpb of experiment i against the baseline, is normal around its parent's:
    theta_i ~ N(theta_parent, tau^2)                 an idea changes its parent a little, in either direction
    y_i     ~ N(theta_i, s^2 / n_i)                  mean of n_i differences to the baseline, paired on their seeds
    m_i     = m_parent + w_i (y_i - m_parent)        with w_i = v_i / (v_i + s^2 / n_i), v_i = v_parent's rest + tau^2
so a score from one seed is drawn towards its parent's, and one from many seeds counts almost as it stands.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from jaxresearch.experiment import Experiment
from jaxresearch.strategy import StudyView

UNKNOWN_NOISE_BPB = 0.005
"""Taken for the deviation between seeds before it is known."""
_PRIOR_DEGREES = 2.0
_PRIOR_STEPS = 3
_MEDIAN_OF_CHI_SQUARE = 0.455


@dataclass(frozen=True)
class Belief:
    """What is believed of one experiment's true val_bpb against the baseline's. Below zero is better."""

    mean: float
    sd: float


def differences(experiment: Experiment, reference: Experiment) -> list[float]:
    """val_bpb of `experiment` minus `reference`, for each seed that both ran."""
    mine, theirs = experiment.scores, reference.scores
    return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]


def against_baseline(view: StudyView, number: int) -> float | None:
    """y_i: how experiment `number` differs from the baseline, in bits per byte; None without a score that counts."""
    experiment = view.experiments[number]
    if number and (experiment.verdict is None or not usable(experiment)):
        return None
    paired = differences(experiment, view.baseline)
    if paired:
        return statistics.fmean(paired)
    here, there = experiment.val_bpb, view.baseline.val_bpb
    return None if here is None or there is None else here - there


def usable(experiment: Experiment) -> bool:
    """Whether its score says something about its candidate: it was judged by it, and not refused."""
    return experiment.verdict in ("keep", "discard") and experiment.val_bpb is not None


def pair_sd(view: StudyView) -> float:
    """s: deviation of one paired difference, pooled over replicated experiments and the seeds' own as a prior."""
    prior = view.noise_sd or UNKNOWN_NOISE_BPB
    total, degrees = _PRIOR_DEGREES * prior**2, _PRIOR_DEGREES
    for experiment in view.experiments[1:]:
        paired = differences(experiment, view.baseline) if usable(experiment) else []
        if len(paired) > 1:
            total += statistics.variance(paired) * (len(paired) - 1)
            degrees += len(paired) - 1
    return math.sqrt(total / degrees)


def beliefs(view: StudyView) -> dict[int, Belief]:
    """The posterior of every experiment with a usable score, the baseline (exactly 0) among them."""
    noise = pair_sd(view)
    effects = {each.number: against_baseline(view, each.number) for each in view.experiments}
    spread = _spread(view, effects, noise)
    found = {0: Belief(0.0, 0.0)}
    for experiment in view.experiments[1:]:
        effect = effects[experiment.number]
        if effect is None:
            continue
        prior = found.get(_scored_ancestor(view, experiment, found), found[0])
        variance = prior.sd**2 + spread**2
        error = noise**2 / max(1, len(differences(experiment, view.baseline)))
        weight = variance / (variance + error) if variance + error else 0.0
        mean = prior.mean + weight * (effect - prior.mean)
        found[experiment.number] = Belief(mean, math.sqrt(variance * (1 - weight)))
    return found


def _spread(view: StudyView, effects: dict[int, float | None], noise: float) -> float:
    """tau, from the median squared step so that a few disasters do not stretch it; never below half the noise."""
    steps = [_MEDIAN_OF_CHI_SQUARE * 2 * noise**2] * _PRIOR_STEPS  # before steps are known: about as large as noise
    for experiment in view.experiments[1:]:
        here, there = effects[experiment.number], effects.get(experiment.parent or 0)
        if here is not None and there is not None:
            steps.append((here - there) ** 2)
    typical = statistics.median(steps) / _MEDIAN_OF_CHI_SQUARE
    return math.sqrt(max(typical - noise**2, noise**2 / 4))


def _scored_ancestor(view: StudyView, experiment: Experiment, found: dict[int, Belief]) -> int:
    at = experiment.parent
    while at and at not in found:
        at = view.experiments[at].parent
    return at or 0
