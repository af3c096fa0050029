"""beam, a true beam search; which candidates are kept stays the laboratory's affair:

beam = [baseline]; a round begins with second chances (agents/second_chance.py), which are children too
repeat: every member gets `children` children, dealt in turn, the best member first; then
    rank parents and children by posterior mean (agents/posterior.py), not by the luckiest score
    beam = the best `width` of them, at most one for each idea
a round proposes what is missing of the present generation, at most one for each slot

The generation is read off the history, so nothing is remembered. A discarded experiment may be a member: its score
counts, shrunk towards its parent's as far as its few runs deserve. An idea is the set of things that were changed since
the baseline (names of hyperparameters, tags or places of edits), whatever the values.
"""

from __future__ import annotations

import re

from pydantic import Field

from agents.posterior import Belief, beliefs
from agents.researcher import ask
from agents.second_chance import second_chances
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView


class Beam:
    """Keeps the best few by posterior mean, one for each idea, and builds on all of them."""

    class Options(StrategyOptions):
        """width: members of the beam. children: of each member in a generation. repair, retune: as for greedy."""

        width: int = Field(default=3, ge=1, le=64)
        children: int = Field(default=2, ge=1, le=64)
        repair: bool = True
        retune: bool = True

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, Beam.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        members, born = self.generation(view)
        proposals = await second_chances(view, slots, repair=self.options.repair, retune=self.options.retune)
        for proposal in proposals:
            born.append(proposal.parent)
            view = view.with_pending(proposal)
        left = len(members) * self.options.children - len(born)
        for _ in range(min(slots - len(proposals), left)):
            fewest_first = sorted(members, key=born.count)  # stable: among equals the best member first
            proposal = await self._child(view, fewest_first, failing=not proposals)
            if proposal is None:
                break
            proposals.append(proposal)
            born.append(proposal.parent)
            view = view.with_pending(proposal)
        return proposals

    async def _child(self, view: StudyView, parents: list[int], *, failing: bool) -> Proposal | None:
        """A child of the first of `parents` for which one can be had."""
        for at, parent in enumerate(parents):
            try:
                return await ask(view, parent)
            except ProposalError:
                if failing and at == len(parents) - 1:
                    raise
        return None

    def generation(self, view: StudyView) -> tuple[list[int], list[int]]:
        """The beam's members, best first, and the parent of each child that it has had so far."""
        found = beliefs(view)
        members, born, pool = [0], [], [0]
        for experiment in view.experiments[1:]:
            if experiment.parent is None:
                continue
            born.append(experiment.parent)
            pool.append(experiment.number)
            if len(born) >= len(members) * self.options.children:
                members = survivors(view, [*members, *pool], found, self.options.width)
                born, pool = [], []
        return members, born


def survivors(view: StudyView, pool: list[int], found: dict[int, Belief], width: int) -> list[int]:
    """The `width` best of `pool` by posterior mean, the best of each idea only."""
    ranked = sorted({each for each in pool if each in found}, key=lambda each: (found[each].mean, each))
    chosen: dict[frozenset[str], int] = {}
    for each in ranked:
        chosen.setdefault(idea(view, each), each)
    return list(chosen.values())[:width]


def idea(view: StudyView, number: int) -> frozenset[str]:
    """What experiment `number` changed since the baseline, without how much."""
    parts: set[str] = set()
    at: int | None = number
    while at:
        proposal = view.experiments[at].proposal
        if proposal is None:
            break
        parts |= set(proposal.config)
        if proposal.edits:
            name = re.sub(r"[\d\W_]+$", "", proposal.tag.lower())
            parts |= {name} if name else {f"{edit.path}:{edit.search.strip()[:80]}" for edit in proposal.edits}
        at = proposal.parent
    return frozenset(parts)
