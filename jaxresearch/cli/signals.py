"""Signals where no session obeys them: SIGINT and SIGTERM end a command by KeyboardInterrupt, so that it tidies up."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While in this, both signals interrupt, unless whoever started the process has them ignored or handled."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [each for each, handler in usual.items() if signal.getsignal(each) is handler]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for each in ours:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, usual[each])


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: KeyboardInterrupt, here or as soon as it would be heard."""
    if _is_unheard(frame):
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
        return
    raise KeyboardInterrupt


def _is_unheard(frame: FrameType | None) -> bool:
    """Whether Python drops what is raised in `frame`: it was called by the garbage collector, where jax has a callback."""
    by_collector = {getattr(each, "__code__", None) for each in gc.callbacks}
    while frame is not None:
        if frame.f_code in by_collector or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
