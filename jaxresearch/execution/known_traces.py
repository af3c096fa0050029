"""KnownTraces: what tracing gave in this session, so that a change of runtime inputs needs no trace of its own."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxresearch.execution.base import TracedCandidate
from jaxresearch.proposal import Candidate, Hyperparameter, Scalar


@dataclass
class _Sources:
    """What was learned from tracing one source tree: its runtime inputs, their defaults, and traces by static config."""

    traced: frozenset[str]
    defaults: dict[str, float]
    by_static: dict[str, TracedCandidate]


class KnownTraces:
    """Traces of this session. A candidate that differs from one in runtime inputs only needs no trace of its own."""

    def __init__(self) -> None:
        self._sources: dict[str, _Sources] = {}

    def find(self, candidate: Candidate) -> TracedCandidate | None:
        sources = self._sources.get(_key(candidate.files))
        if sources is None:
            return None
        found = sources.by_static.get(_key(_static(candidate.config, sources.traced)))
        if found is None:
            return None
        values = {}
        for name in sources.traced:
            value = candidate.config.get(name, sources.defaults.get(name))
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return None
            values[name] = float(value)
        return found.model_copy(
            update={
                "traced": values,
                "hyperparameters": tuple(_with_value(h, values) for h in found.hyperparameters),
                "trace_seconds": 0.0,
                "verify_seconds": 0.0,
            }
        )

    def remember(self, candidate: Candidate, result: TracedCandidate) -> None:
        names = frozenset(result.traced)
        sources = self._sources.setdefault(_key(candidate.files), _Sources(names, {}, {}))
        if sources.traced != names:
            return  # the inputs depend on the config; then each candidate is traced
        sources.defaults |= {name: value for name, value in result.traced.items() if name not in candidate.config}
        sources.by_static[_key(_static(candidate.config, names))] = result


def _static(config: Mapping[str, Scalar], traced: frozenset[str]) -> dict[str, Scalar]:
    return {name: value for name, value in config.items() if name not in traced}


def _with_value(h: Hyperparameter, values: Mapping[str, float]) -> Hyperparameter:
    return replace(h, value=values[h.name]) if h.name in values else h


def _key(facts: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(sorted(facts.items())).encode()).hexdigest()
