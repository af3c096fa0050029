"""tpe, Optuna's tree-structured Parzen estimator over the hyperparameters' bounds:

trials = the study's experiments: scored ones by their paired effect, failed ones infeasible, waiting ones running
rebuild Optuna's study from these trials; it keeps nothing of its own from one round to the next
repeat for each free slot:
    ask the sampler, with the constant-liar penalty around what runs; ask again while a point does not trace
propose the point on the baseline
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pydantic import Field

from agents.numeric import NumericOptions, Point, fill
from agents.space import Axis, Space
from jaxresearch.proposal import Proposal, Scalar
from jaxresearch.strategy import StrategyOptions, StudyView

if TYPE_CHECKING:
    import optuna


class TPE:
    """Optuna's TPE over the hyperparameters, told of failures as infeasible and of what runs as running."""

    asks_model = False

    class Options(NumericOptions):
        """startup: random points before the estimator speaks. candidates: draws that it ranks. multivariate: joint."""

        startup: int = Field(default=8, ge=1)
        candidates: int = Field(default=24, ge=1)
        multivariate: bool = True

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, TPE.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        space = Space.of(view, 0, self.options.names)
        return await fill(view, slots, space, 0, sampler(view, space, self.options), "tpe")


class _Sampler:
    """Optuna's sampler with a study that is rebuilt, trial by trial, from the points that it is shown."""

    def __init__(self, seed: int, space: Space, options: TPE.Options) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `multivariate` and `constant_liar` may be called experimental
            self._sampler = optuna.samplers.TPESampler(
                seed=seed % 2**32,
                n_startup_trials=options.startup,
                n_ei_candidates=options.candidates,
                multivariate=options.multivariate,
                constant_liar=True,
            )
        self._space = space
        self._distributions = {axis.name: _distribution(axis) for axis in space.axes}

    def __call__(self, points: list[Point]) -> dict[str, Scalar]:
        import optuna

        study = optuna.create_study(sampler=self._sampler)
        study.add_trials([self._trial(point) for point in points])
        asked = study.ask(self._distributions).params
        return {axis.name: self._value(axis, asked[axis.name]) for axis in self._space.axes}

    def _trial(self, point: Point) -> optuna.trial.FrozenTrial:
        from optuna.trial import TrialState, create_trial

        parameters = {axis.name: point.config[axis.name] for axis in self._space.axes}
        if point.infeasible:
            trial = create_trial(params=parameters, distributions=self._distributions, value=0.0)
            trial.set_constraint("failed", 1.0)  # above zero is infeasible; the value is not looked at
            return trial
        state = TrialState.RUNNING if point.value is None else TrialState.COMPLETE
        return create_trial(params=parameters, distributions=self._distributions, value=point.value, state=state)

    def _value(self, axis: Axis, value: Scalar) -> Scalar:
        """Rounded as a person would write it, by the way of the unit cube."""
        return value if axis.levels else axis.at(axis.unit(value))


def sampler(view: StudyView, space: Space, options: TPE.Options) -> _Sampler:
    return _Sampler(view.seed, space, options)


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    import optuna

    if axis.levels:
        return optuna.distributions.CategoricalDistribution(axis.levels)
    low, high = axis.bounds
    if isinstance(axis.each.value, int):
        return optuna.distributions.IntDistribution(round(low), round(high), log=axis.is_log)
    return optuna.distributions.FloatDistribution(low, high, log=axis.is_log)
