"""reflective, a researcher that keeps a notebook and looks back:

notebook = lessons with their evidence, predictions against outcomes: all read off the history
plateau = nothing kept in the last `patience` experiments; exhausted = categories with `patience` tries since a keep
second chances (agents/second_chance.py); on a plateau, by turns: combine two near misses, go back to an earlier parent
else, and in the third turn, ask on the incumbent with the notebook: exhausted ideas and unstated chances are refused
the model writes its lessons beside its proposal, so the next round reads them from the ledger
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from pydantic import Field

from agents.digest import effect, near_misses
from agents.notebook import category, evidence, text
from agents.posterior import beliefs
from agents.researcher import ask, find_problem
from agents.second_chance import second_chances
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView


class Reflective:
    """Predicts, compares, keeps a notebook of lessons; on a plateau it combines, goes back or changes the subject."""

    class Options(StrategyOptions):
        """patience: experiments without a keep that make a plateau. notebook: lessons that it holds.

        repair, retune: as for greedy.
        """

        patience: int = Field(default=5, ge=1)
        notebook: int = Field(default=10, ge=0, le=30)
        repair: bool = True
        retune: bool = True

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, Reflective.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        proposals = await second_chances(view, slots, repair=self.options.repair, retune=self.options.retune)
        for proposal in proposals:
            view = view.with_pending(proposal)
        for _ in range(slots - len(proposals)):
            try:
                proposal = await self._next(view)
            except ProposalError:
                if proposals:
                    break
                raise
            proposals.append(proposal)
            view = view.with_pending(proposal)
        return proposals

    async def _next(self, view: StudyView) -> Proposal:
        without_keep = len(view.experiments) - 1 - view.incumbent.number
        if without_keep < self.options.patience:
            return await self._ask(view, view.incumbent.number, "")
        turn = (without_keep - self.options.patience) % 3
        if turn == 0:
            combined = await combine(view)
            if combined is not None:
                return combined
        diagnosis = f"Plateau: nothing was kept in the last {without_keep} experiments. "
        if turn == 1:
            parent = earlier_parent(view)
            why = f"You go back to experiment {parent}: build on it another way than its descendants did."
            return await self._ask(view, parent, diagnosis + why)
        return await self._ask(view, view.incumbent.number, diagnosis + "Change the kind of idea, not its size.")

    async def _ask(self, view: StudyView, parent: int, diagnosis: str) -> Proposal:
        """Ask with the notebook, refusing what is exhausted; should that leave nothing, ask without refusing."""
        exhausted = self.exhausted(view)
        closed = f"Exhausted, choose another category: {', '.join(exhausted)}." if exhausted else ""
        task = (
            "State predicted_change and confidence. Write a lesson where an outcome taught you one; retire wrong ones."
        )
        guidance = "\n".join(part for part in (diagnosis, closed, task, text(view, self.options.notebook)) if part)

        async def check(proposal: Proposal) -> str | None:
            if proposal.confidence is None:
                return "State your confidence (the chance that it is kept) and predicted_change."
            if category(proposal) in exhausted:
                return f"Category {category(proposal)!r} is exhausted. {closed}"
            return await view.check(proposal)

        try:
            return await ask(replace(view, check=check), parent, guidance)
        except ProposalError:
            if not exhausted:
                raise
            return await ask(view, parent, guidance)

    def exhausted(self, view: StudyView) -> list[str]:
        """Categories with `patience` tries since they last gave a keep."""
        return [each.category for each in evidence(view) if each.since_keep >= self.options.patience]


async def combine(view: StudyView) -> Proposal | None:
    """The two best near misses that were not tried together yet, as one change of the incumbent."""
    tags = {each.proposal.tag for each in view.experiments if each.proposal is not None}
    for one, other in itertools.combinations(near_misses(view), 2):
        proposal = _both(view, one, other)
        if proposal is None or proposal.tag in tags or find_problem(proposal, view):
            continue
        if await view.check(proposal) is None:
            return proposal
    return None


def _both(view: StudyView, one: Experiment, other: Experiment) -> Proposal | None:
    first, second = one.proposal, other.proposal
    if first is None or second is None or first.config.keys() & second.config.keys():
        return None
    names = sorted((first.tag or f"#{one.number}", second.tag or f"#{other.number}"))
    expected = (effect(view, one) or 0.0) + (effect(view, other) or 0.0)
    return Proposal(
        parent=view.incumbent.number,
        hypothesis=f"Together: {names[0]} and {names[1]} each nearly helped (experiments {one.number}, {other.number}).",
        expected_effect=f"{expected:+.4f} if the two add up.",
        config={**first.config, **second.config},
        edits=(*first.edits, *second.edits),
        tag=" & ".join(names)[:160],
        predicted_bpb=expected,
        confidence=_combination_rate(view),
    )


def _combination_rate(view: StudyView) -> float:
    """How often combinations were kept, by Laplace's rule of succession."""
    tried = [each for each in view.experiments if each.proposal is not None and " & " in each.proposal.tag]
    judged = [each for each in tried if each.verdict is not None]
    return (1 + sum(each.verdict is Verdict.KEEP for each in judged)) / (2 + len(judged))


def earlier_parent(view: StudyView) -> int:
    """Whom to go back to: the best posterior mean but the incumbent's, each child so far counting against it by a sd."""
    found = beliefs(view)
    children = [each.parent for each in view.experiments]
    others = [number for number in found if number != view.incumbent.number] or [view.incumbent.number]
    step = sorted(found[each].sd for each in found)[len(found) // 2]
    return min(others, key=lambda each: (found[each].mean + step * children.count(each), each))
