"""Signals that arrive before a session obeys them."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from jaxresearch.cli.signals import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts(number: int):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


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
