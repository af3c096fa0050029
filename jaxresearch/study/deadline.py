"""The ends that a session may change, and one of them, `max_seconds`: what becomes of the run that is going then.

Nothing is begun after it (`next_step` sees to that). A run that has begun is finished when it will have ended within
5 % of `max_seconds`, or a minute; one that would overrun by more is stopped at its checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxresearch.errors import JaxresearchError
from jaxresearch.study.history import History
from jaxresearch.study.stopping import Stop

_SHARED_OUT = JaxresearchError(
    "acceptance.control is study: its 5 % of false keeps is shared out over the experiments planned at the start.",
    fix="Give --experiments no more than that, or go on in a new study with --from.",
)

PATIENCE_SHARE, PATIENCE_SECONDS = 0.05, 60.0
_MARGIN_SECONDS = 0.5
"""Later than the study's own clock, so that this one also says that the time is used."""


def check_caps(history: History, caps: Mapping[str, float | None]) -> None:
    """Refuse what a session cannot change. Raises `JaxresearchError`."""
    experiments, config = caps.get("experiments"), history.config
    if config.acceptance.control == "study" and experiments is not None and experiments > config.experiments:
        raise _SHARED_OUT


@contextmanager
def deadline(history: History, max_seconds: float | None, stop: Stop) -> Iterator[None]:
    """While in this, `stop` winds down once a session that begins now has used what is left of `max_seconds`."""
    if max_seconds is None:
        yield
        return
    left = max(0.0, max_seconds - history.costs.wall_seconds) + _MARGIN_SECONDS
    patience = max(PATIENCE_SECONDS, PATIENCE_SHARE * max_seconds)
    timer = asyncio.get_running_loop().call_later(left, stop.wind_down, patience)
    try:
        yield
    finally:
        timer.cancel()
        stop.forget()
