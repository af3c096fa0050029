"""Signals that arrive before a session obeys them."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable

import pytest

from jaxresearch.cli.signals import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts(number: int):
    def be_told() -> None:
        with interruptible():
            os.kill(os.getpid(), number)
            time.sleep(60)  # another thread may have caught it

    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # who starts the tests behind `&` has SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            be_told()
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


class Finalised:
    def __init__(self, finaliser: Callable[[], None]) -> None:
        self._finaliser = finaliser

    def __del__(self) -> None:
        self._finaliser()


@pytest.mark.parametrize("where", ["finaliser", "weak reference"])
def test_a_signal_where_python_drops_exceptions_is_not_lost(where: str):
    def send(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.001)  # another thread may have caught it

    def drop() -> None:
        with interruptible():
            thing = Finalised(send if where == "finaliser" else lambda: None)
            reference = weakref.ref(thing, send if where == "weak reference" else None)
            del thing
            assert reference() is None
            time.sleep(60)  # it comes again, soon

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        drop()
    assert sys.unraisablehook is before


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost():
    """Python drops exceptions there, and jax has such a callback."""
    sent = []

    def callback(phase: str, info: dict) -> None:
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)

    def collect() -> None:
        with interruptible():
            gc.collect()
            time.sleep(60)  # it comes again, soon

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect()
    finally:
        gc.callbacks.remove(callback)
    assert sent


def test_a_signal_that_is_ignored_stays_so():
    """A shell that starts a command behind `&` has it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
