"""A new study whose subject gives no program, or has nothing of what its strategy is to search: it holds nothing, can
never go on, and is not left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.experiment import TraceFailure
from jaxresearch.study.asking import check_fit
from jaxresearch.study.history import History
from jaxresearch.study.study import Study

_FIX = "Repair that and start again; the new folder is removed."


def remove_stillborn(folder: Path, *studies: Study) -> JaxresearchError | None:
    """Remove `folder`, which was just made for `studies` of one subject, when that subject gives no program for them.

    Why not, as an error; None when it does or nobody has seen yet, and then nothing is done. The studies are closed if the
    folder is removed.
    """
    failures = [failure for study in studies if (failure := _failure(study.history)) is not None]
    trained = any(study.history.baseline.experiment.runs for study in studies)
    if not failures or trained:
        return None
    for study in studies:
        study.close()
    shutil.rmtree(folder, ignore_errors=True)
    return failures[0]


def _failure(history: History) -> JaxresearchError | None:
    trace = history.baseline.trace
    if history.hopeless and isinstance(trace, TraceFailure):
        return trace.of_subject(history.config.subject.hyperparameters, fix=_FIX)
    try:
        check_fit(history)
    except ConfigurationError as error:
        return error
    return None
