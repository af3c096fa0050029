"""cmaes, covariance matrix adaptation in the unit cube of the hyperparameters that have an order:

start the distribution at the baseline; a generation is `population` points
replay the study's points into it, one full generation after another, best first; failed ones rank last
repeat for each free slot:
    draw a point of the present generation; draw again while it does not trace or was there before
propose the point on the baseline

Optuna's sampler keeps its state pickled in the trials that it asked for; this is the optimiser beneath it, so that the
study's own history is state enough.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from agents.numeric import NumericOptions, Point, fill, observed
from agents.space import Space
from jaxresearch.proposal import Proposal, Scalar
from jaxresearch.strategy import StrategyOptions, StudyView

if TYPE_CHECKING:
    from cmaes import CMA


class CMAES:
    """CMA-ES over the ordered hyperparameters, around the baseline, rebuilt from the history each round."""

    asks_model = False

    class Options(NumericOptions):
        """population: points of a generation; 4 + 3 ln(n) when null. sigma: first step, as a share of the range."""

        population: int | None = Field(default=None, ge=2)
        sigma: float = Field(default=0.15, gt=0, le=1)

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, CMAES.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        space = Space.of(view, 0, self.options.names, ordered=True)
        ended = [point for point in observed(view, space) if point.number > 0]
        ended = [point for point in ended if point.infeasible or point.value is not None]
        optimiser = self._after(space, ended, int(view.generator().integers(2**31)))

        def ask(points: list[Point]) -> dict[str, Scalar]:
            del points  # of one generation all are drawn alike
            return space.config(np.clip(optimiser.ask(), 0.0, 1.0)[: len(space.axes)])

        return await fill(view, slots, space, 0, ask, "cmaes")

    def _after(self, space: Space, ended: list[Point], seed: int) -> CMA:
        """The optimiser after all full generations of `ended`, and from there with the randomness of `seed`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cmaes import CMA

        dimensions = max(2, len(space.axes))  # the package wants two; a spare one is never read
        size = self.options.population or 4 + math.floor(3 * math.log(dimensions))
        cube = np.tile((0.0, 1.0), (dimensions, 1))
        start = self._point(space, space.here, dimensions)
        optimiser = CMA(mean=start, sigma=self.options.sigma, bounds=cube, seed=seed, population_size=size)
        for first in range(0, len(ended) - size + 1, size):
            generation = ended[first : first + size]
            worst = max((each.value for each in generation if each.value is not None), default=0.0)
            optimiser.tell(
                [
                    (self._point(space, each.config, dimensions), worst + 1.0 if each.value is None else each.value)
                    for each in generation
                ]
            )
        return optimiser

    @staticmethod
    def _point(space: Space, config: Mapping[str, Scalar], dimensions: int) -> np.ndarray:
        point = np.full(dimensions, 0.5)
        point[: len(space.axes)] = space.units(config)
        return point
