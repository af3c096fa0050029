"""hybrid, an optimiser for numbers and a language model for code:

a repair first for code that crashed (agents/second_chance.py); then for each slot, the kind that is behind its share most:
    tpe       TPE's suggestion, in at most `changes` numbers, on the incumbent
    code      the researcher, asked for an edit of the incumbent
    informed  the researcher, asked for numbers, with the optimiser's best points, failures and suggestion before it
remember it as pending, so that the next slot differs
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

from pydantic import Field

from agents.numeric import Point, draw, observed
from agents.researcher import ask
from agents.second_chance import second_chances
from agents.space import NothingToSearchError, Space
from agents.tpe import TPE, sampler
from jaxresearch.proposal import Proposal, Scalar
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView

Kind = Literal["tpe", "code", "informed"]
_TAG = "hybrid-tpe"
_ORDERS: dict[str, str] = {
    "code": "This slot is for a change of the source. Numbers are searched by an optimiser.",
    "informed": "This slot is for hyperparameters only. An optimiser searches them too; what it knows:",
}


class Hybrid:
    """TPE for numbers, the model for code and for a share of the numbers, told what the optimiser knows."""

    class Options(TPE.Options):
        """code_share, informed_share: of all proposals; TPE takes the rest. Of the second, what the first leaves counts.

        changes: numbers that TPE moves at once. repair: as for greedy.
        """

        startup: int = Field(default=4, ge=1)
        code_share: float = Field(default=0.4, ge=0, le=1)
        informed_share: float = Field(default=0.2, ge=0, le=1)
        changes: int = Field(default=4, ge=1)
        repair: bool = True

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, Hybrid.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        proposals = await second_chances(view, slots, repair=self.options.repair, retune=False)
        for proposal in proposals:
            view = view.with_pending(proposal)
        for _ in range(slots - len(proposals)):
            proposal = await self._next(view)
            if proposal is None:
                break
            proposals.append(proposal)
            view = view.with_pending(proposal)
        if not proposals:
            raise ProposalError("neither the optimiser nor the model had a new proposal")
        return proposals

    async def _next(self, view: StudyView) -> Proposal | None:
        """A proposal of the kind whose turn it is, or of the next kind where that one has nothing."""
        for kind in self.kinds(view):
            try:
                proposal = await (self._number(view) if kind == "tpe" else self._asked(view, kind))
            except ProposalError:
                continue
            if proposal is not None:
                return proposal
        return None

    def kinds(self, view: StudyView) -> list[Kind]:
        """All kinds with a share, the one that is furthest behind it first."""
        code = self.options.code_share
        informed = min(self.options.informed_share, 1 - code)
        shares: dict[Kind, float] = {"tpe": 1 - code - informed, "code": code, "informed": informed}
        done = Counter(kind_of(each.proposal) for each in view.experiments if each.proposal is not None)
        wanted: list[Kind] = [kind for kind in shares if shares[kind] > 1e-9]
        return sorted(wanted, key=lambda kind: done[kind] - shares[kind] * (done.total() + 1))

    async def _number(self, view: StudyView) -> Proposal | None:
        parent = view.incumbent.number
        space = self._space(view, parent)
        suggest, rng = sampler(view, space, self.options), view.generator()

        def suggested(points: list[Point]) -> dict[str, Scalar]:
            moves = space.moves(suggest(points))
            count = min(self.options.changes, len(moves))
            moved = [list(moves)[int(at)] for at in rng.choice(len(moves), size=count, replace=False)] if moves else []
            return {**space.here, **{name: moves[name] for name in sorted(moved)}}

        return await draw(view, space, parent, suggested, _TAG)

    def _space(self, view: StudyView, parent: int) -> Space:
        """Where there are no numbers to move, code may go on."""
        try:
            return Space.of(view, parent, self.options.names)
        except NothingToSearchError as error:
            raise ProposalError(str(error)) from error

    async def _asked(self, view: StudyView, kind: Kind) -> Proposal:
        guidance = _ORDERS[kind]
        if kind == "informed":
            guidance = f"{guidance}\n{self.state(view)}"

        async def check(proposal: Proposal) -> str | None:
            if bool(proposal.edits) != (kind == "code"):
                return _ORDERS[kind]
            return await view.check(proposal)

        try:
            return await ask(replace(view, check=check), view.incumbent.number, guidance)
        except ProposalError:
            return await ask(view, view.incumbent.number, guidance)  # better another kind than none

    def state(self, view: StudyView) -> str:
        """What the optimiser knows, as text: the best points, what failed, and where it would go next."""
        space = self._space(view, view.incumbent.number)
        points = observed(view, space)
        scored = sorted((point for point in points if point.value is not None), key=lambda each: each.value or 0.0)
        lines = [f"best: #{each.number} {each.value:+.4f} {_moved(view, each)}" for each in scored[:5]]
        lines += [f"failed: #{each.number} {_moved(view, each)}" for each in points if each.infeasible][-3:]
        suggestion = space.moves(sampler(view, space, self.options)(points))
        lines.append(f"it would set: {', '.join(f'{name}={value}' for name, value in list(suggestion.items())[:12])}")
        return "\n".join(lines)


def kind_of(proposal: Proposal) -> Kind:
    if proposal.edits:
        return "code"
    return "tpe" if proposal.tag.startswith(_TAG) else "informed"


def _moved(view: StudyView, point: Point) -> str:
    start = {each.name: each.value for each in view.hyperparameters(0)}
    moves = {name: value for name, value in point.config.items() if start.get(name) != value}
    return ", ".join(f"{name}={value}" for name, value in list(moves.items())[:12]) or "the baseline's numbers"
