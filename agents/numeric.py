"""What the config-only strategies share: the study as an optimiser sees it, and proposing points until slots are full.

A point's value is the sum of the paired effects of the numeric steps on its way from the baseline, so that what code
changed is not credited to numbers. Whatever crashed, ran out of memory or time or failed an audit is infeasible; what
waits is pending; duplicates and what the infrastructure lost say nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from agents.posterior import against_baseline, usable
from agents.space import Space, check_names, searchable, values_of
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.proposal import Hyperparameter, Proposal, Scalar
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView

ATTEMPTS, CHECKS = 100, 25
"""Draws for one slot, and how many of them may be traced: what does not trace or was there before is drawn again."""
_INFEASIBLE = (Verdict.CRASH, Verdict.INVALID, Verdict.TIMEOUT)


class NumericOptions(StrategyOptions):
    """What every config-only strategy lets one set."""

    names: tuple[str, ...] = Field(default=(), description="hyperparameters to search; all with bounds when empty")

    def check(self, hyperparameters: Sequence[Hyperparameter]) -> None:
        check_names(self.names, searchable(hyperparameters))


@dataclass(frozen=True)
class Point:
    """One place in the space. value: bits per byte against the baseline, None while pending and when infeasible.

    number: of the experiment; -1 for a draw of this round that the laboratory's check refused.
    """

    config: Mapping[str, Scalar]
    value: float | None = None
    infeasible: bool = False
    number: int = -1


def observed(view: StudyView, space: Space) -> list[Point]:
    """Every experiment that moved to a point of `space`, in order, and the baseline before them."""
    points, values_there = [], values_of(view)
    for experiment in view.experiments:
        number, proposal, values = experiment.number, experiment.proposal, values_there[experiment.number]
        config = {axis.name: values[axis.name] for axis in space.axes if axis.name in values}
        if not space.holds(config) or (proposal is not None and not proposal.config):
            continue
        if experiment.verdict is None:
            points.append(Point(config, number=number))
        elif experiment.verdict in _INFEASIBLE or _was_cut(experiment):
            if proposal is not None and not proposal.edits:  # else the code may be to blame
                points.append(Point(config, infeasible=True, number=number))
        elif usable(experiment):
            value = numeric_effect(view, number)
            if value is not None:
                points.append(Point(config, value=value, number=number))
    return points


def _was_cut(experiment: Experiment) -> bool:
    """Whether its first run was so far behind that it was ended early: no score, yet known to be bad."""
    return experiment.verdict is Verdict.DISCARD and experiment.val_bpb is None


def numeric_effect(view: StudyView, number: int) -> float | None:
    """The sum of the paired effects of the steps from the baseline to `number` that set numbers and edited nothing."""
    total, at = 0.0, number
    while at:
        proposal = view.experiments[at].proposal
        assert proposal is not None
        here, there = against_baseline(view, at), against_baseline(view, proposal.parent)
        if here is None or there is None:
            return None
        total += 0.0 if proposal.edits else here - there
        at = proposal.parent
    return total


Ask = Callable[[list[Point]], dict[str, Scalar]]
"""From what was observed (and what this slot's check refused, as infeasible) to the next point."""


async def fill(view: StudyView, slots: int, space: Space, parent: int, ask: Ask, describe: str) -> list[Proposal]:
    """Up to `slots` new proposals on `parent`, each drawn by `ask` until the laboratory finds nothing wrong with it."""
    proposals: list[Proposal] = []
    for _ in range(slots):
        proposal = await draw(view, space, parent, ask, describe)
        if proposal is None:
            break
        proposals.append(proposal)
        view = view.with_pending(proposal)
    if not proposals:
        raise ProposalError(f"{ATTEMPTS} draws gave no new point that traces: widen the space (strategy.names)")
    return proposals


async def draw(view: StudyView, space: Space, parent: int, ask: Ask, describe: str) -> Proposal | None:
    """One new proposal on `parent`, or None when `ATTEMPTS` draws gave none."""
    values = values_of(view)
    seen = {_key(values[each.number]) for each in view.experiments if not has_own_code(view, each.number)}
    start, points, checks = values[parent], observed(view, space), 0
    plain = not has_own_code(view, parent)
    for _ in range(ATTEMPTS):
        config = ask(points)
        moves = space.moves(config)
        if moves and not (plain and _key({**start, **moves}) in seen) and not _repeats(view, parent, moves):
            proposal = Proposal(
                parent=parent,
                hypothesis=f"{describe}: {_shown(moves)}",
                config=moves,
                tag=f"{describe}-{_short(moves)}",
            )
            if await view.check(proposal) is None:
                return proposal
            checks += 1
            points = [*points, Point(config, infeasible=True)]
            if checks == CHECKS:
                break
    return None


def has_own_code(view: StudyView, number: int) -> bool:
    """Whether anything between the baseline and experiment `number` edited the source."""
    at: int | None = number
    while at:
        proposal = view.experiments[at].proposal
        if proposal is None:
            return False
        if proposal.edits:
            return True
        at = proposal.parent
    return False


def _repeats(view: StudyView, parent: int, moves: Mapping[str, Scalar]) -> bool:
    tried = [each.proposal for each in view.experiments if each.proposal is not None and not each.proposal.edits]
    return any(each.parent == parent and each.config == moves for each in tried)


def _key(values: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(values.items()))


def _shown(moves: Mapping[str, Scalar]) -> str:
    parts = [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in moves.items()]
    return ", ".join(parts)[:400]


def _short(moves: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(_shown(moves).encode()).hexdigest()[:8]
