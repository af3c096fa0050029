"""Scoring again inside a worker: a kept final state, the stored program, and the same rows as the first time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from jaxresearch.data.dataset import Corpus
from jaxresearch.execution.base import StateRequest
from jaxresearch.execution.sampling import restored
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.scoring.scorer import score
from jaxresearch.training.trainer import state_targets


class RescoringHost(Protocol):
    """The worker, as scoring again sees it."""

    settings: WorkerSettings
    corpus: Corpus
    rows: np.ndarray

    def executables(self, program: str) -> tuple[Any, Any, float]: ...


def rescore(host: RescoringHost, request: StateRequest) -> float:
    """Bits per byte of the state on the validation rows. Raises `JaxresearchError` where it cannot be used."""
    compiled, scorer, _ = host.executables(request.program)
    leaves = restored(host.settings.runs, request, state_targets(compiled))
    return score(scorer, leaves, host.rows, host.corpus.byte_lengths).val_bpb
