"""random_search, the control for everything that numbers can do:

repeat for each free slot:
    draw every hyperparameter anew, uniformly on its own scale (ratios where it is log, each choice alike)
    draw again while the point does not trace or was there before
propose it on the baseline: nothing that was learned is used
"""

from __future__ import annotations

from pydantic import Field

from agents.numeric import NumericOptions, Point, fill
from agents.space import Space
from jaxresearch.proposal import Proposal, Scalar
from jaxresearch.strategy import StrategyOptions, StudyView


class RandomSearch:
    """Draws hyperparameters at random within their bounds; learns nothing. A control."""

    asks_model = False

    class Options(NumericOptions):
        """changes: how many hyperparameters one proposal moves; all when null."""

        changes: int | None = Field(default=None, ge=1)

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, RandomSearch.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        space, rng = Space.of(view, 0, self.options.names), view.generator()

        def ask(points: list[Point]) -> dict[str, Scalar]:
            del points
            anew = space.config(rng.random(len(space.axes)))
            if self.options.changes is None or self.options.changes >= len(space.axes):
                return anew
            moved = rng.choice(len(space.axes), size=self.options.changes, replace=False)
            return {**space.here, **{space.axes[int(at)].name: anew[space.axes[int(at)].name] for at in moved}}

        return await fill(view, slots, space, 0, ask, "random")
