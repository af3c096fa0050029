"""The box that numeric strategies search: the hyperparameters that declare bounds or choices, and nothing else.

A point is a config. `unit` and `config` go to and from the cube [0, 1]^n, in which a log-scaled number moves by ratios
and choices stand in their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from agents.steering import taboos, touched
from jaxresearch.errors import ConfigurationError
from jaxresearch.proposal import Hyperparameter, Scalar
from jaxresearch.strategy import StudyView


class NothingToSearchError(ConfigurationError):
    """No hyperparameter may be moved."""


@dataclass(frozen=True)
class Axis:
    """One searched hyperparameter. levels: its choices in order; empty for a number between bounds."""

    each: Hyperparameter
    levels: tuple[Scalar, ...] = ()

    @property
    def name(self) -> str:
        return self.each.name

    @property
    def is_ordered(self) -> bool:
        """Whether a step along it means more or less of something."""
        return not self.levels or all(_is_number(level) for level in self.levels)

    @property
    def bounds(self) -> tuple[float, float]:
        assert self.each.low is not None
        assert self.each.high is not None
        return self.each.low, self.each.high

    @property
    def is_log(self) -> bool:
        return self.each.log and self.bounds[0] > 0

    def at(self, unit: float) -> Scalar:
        """The value at `unit` in [0, 1], in its own type and with no more digits than a person would write."""
        if self.levels:
            return self.levels[min(int(unit * len(self.levels)), len(self.levels) - 1)]
        low, high = self.bounds
        whole = isinstance(self.each.value, int)
        if whole:  # each whole number gets its share
            low, high = (max(low - 0.5, 0.5) if self.is_log else low - 0.5), high + 0.5
        raw = math.exp(math.log(low) + unit * math.log(high / low)) if self.is_log else low + unit * (high - low)
        low, high = self.bounds
        if whole:
            return int(min(max(round(raw), math.ceil(low)), math.floor(high)))
        return float(min(max(float(f"{raw:.4g}"), low), high))

    def unit(self, value: Scalar) -> float:
        """Where `value` stands in [0, 1]; the middle of its share for a choice or a whole number."""
        if self.levels:
            return (self.levels.index(value) + 0.5) / len(self.levels) if value in self.levels else 0.5
        low, high = self.bounds
        if isinstance(self.each.value, int):
            low, high = (max(low - 0.5, 0.5) if self.is_log else low - 0.5), high + 0.5
        number = min(max(float(value), low), high)
        return math.log(number / low) / math.log(high / low) if self.is_log else (number - low) / (high - low)


@dataclass(frozen=True)
class Space:
    """The searched hyperparameters of one experiment, and its values of them."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, view: StudyView, parent: int, names: Iterable[str] = (), *, ordered: bool = False) -> Space:
        """All that experiment `parent` lets one search, or of it `names`; with `ordered`, only what has an order.

        What program.md makes taboo stays as it is. A name that only the baseline has was taken away by code on the way.
        Raises `NothingToSearchError`, and `ConfigurationError` for a name that never was.
        """
        found = searchable(view.hyperparameters(parent))
        check_names(names, {**searchable(view.hyperparameters(0)), **found})
        wanted = {name for name in set(names) or set(found) if not touched([name], taboos(view.instructions))}
        axes = tuple(axis for name, axis in found.items() if name in wanted and (axis.is_ordered or not ordered))
        if not axes:
            raise NothingToSearchError(
                "No hyperparameter is left to search: by its bounds, strategy.names and program.md."
            )
        return cls(axes)

    @property
    def here(self) -> dict[str, Scalar]:
        """The parent's own values."""
        return {axis.name: axis.each.value for axis in self.axes}

    def config(self, units: np.ndarray) -> dict[str, Scalar]:
        return {axis.name: axis.at(float(unit)) for axis, unit in zip(self.axes, units, strict=True)}

    def units(self, config: Mapping[str, Scalar]) -> np.ndarray:
        return np.array([axis.unit(config[axis.name]) for axis in self.axes])

    def moves(self, config: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """What of `config` differs from the parent."""
        return {name: value for name, value in config.items() if value != self.here.get(name)}

    def holds(self, config: Mapping[str, Scalar]) -> bool:
        """Whether `config` is a point of this space: all axes there, each within its bounds or among its choices."""
        for axis in self.axes:
            value = config.get(axis.name)
            if axis.levels:
                if value not in axis.levels:
                    return False
            elif value is None or not _is_number(value) or not axis.bounds[0] <= float(value) <= axis.bounds[1]:
                return False
        return True


def values_of(view: StudyView) -> list[dict[str, Scalar]]:
    """The hyperparameters that each experiment was to have, in order, also of those that never ran."""
    values: list[dict[str, Scalar]] = []
    for each in view.experiments:
        if each.proposal is None:
            values.append({each.name: each.value for each in view.hyperparameters(0)})
        else:
            values.append({**values[each.proposal.parent], **each.proposal.config})
    return values


def check_names(names: Iterable[str], known: Mapping[str, Axis]) -> None:
    """Raise `ConfigurationError` for the first of `names` that is not among the axes."""
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise ConfigurationError(f"strategy.names: {unknown!r} is not searched.", fix=f"Use {', '.join(known)}.")


def searchable(hyperparameters: Iterable[Hyperparameter]) -> dict[str, Axis]:
    """Those that can be searched, by name."""
    return {axis.name: axis for axis in map(_axis, hyperparameters) if axis is not None}


def _axis(each: Hyperparameter) -> Axis | None:
    if isinstance(each.value, bool):
        return Axis(each, (False, True)) if len(set(each.choices)) != 1 else None
    if each.choices:
        in_order = tuple(sorted(each.choices, key=float)) if all(map(_is_number, each.choices)) else each.choices
        return Axis(each, in_order) if len(in_order) > 1 else None
    if not _is_number(each.value) or each.low is None or each.high is None or not each.low < each.high:
        return None
    return Axis(each) if math.isfinite(each.high - each.low) else None


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
