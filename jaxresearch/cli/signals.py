"""Signals where no session obeys them: SIGINT and SIGTERM end a command by KeyboardInterrupt, so that it tidies up."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While in this, both signals interrupt, unless whoever started the process has them ignored or handled.

    Python drops what is raised in a finaliser, in a callback of a weak reference or of the garbage collector (jax has
    one), and only tells its hook. An interrupt that is dropped there is sent again.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [each for each, handler in usual.items() if signal.getsignal(each) is handler]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    told = sys.unraisablehook

    def dropped(unraisable: Any) -> None:
        number = getattr(unraisable.exc_value, "number", None)
        if number is None:
            told(unraisable)
        else:
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    for each in ours:
        signal.signal(each, interrupt)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = told
        for each in ours:
            signal.signal(each, usual[each])


class _Interrupt(KeyboardInterrupt):
    """KeyboardInterrupt that knows its signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: KeyboardInterrupt, here or, where Python drops it, as soon as it is heard."""
    raise _Interrupt(number)
