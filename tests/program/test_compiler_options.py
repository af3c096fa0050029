"""Options for XLA: what the installed one does not know is left out, and what the user says goes first."""

import jax
import jax.numpy as jnp
import pytest

from jaxresearch.program.mesh import COMPILER_OPTIONS, _knows, one_device

REMOVED_LATER = "xla_cpu_use_fusion_emitters"
"""Gone from some release of jax on."""


@pytest.fixture(autouse=True)
def no_flags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize("platform", COMPILER_OPTIONS)
def test_this_jax_knows_them(platform):
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4)))
    known = {
        name: value
        for name, value in COMPILER_OPTIONS[platform].items()
        if name != REMOVED_LATER or _knows(name, value)
    }
    lowered.compile(known)
    with pytest.raises(Exception, match="xla_no_such_option"):
        lowered.compile({"xla_no_such_option": True})


def test_what_the_user_says_goes_first(monkeypatch: pytest.MonkeyPatch):
    assert one_device().compiler_options["xla_backend_optimization_level"] == "2"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_backend_optimization_level=0 --{REMOVED_LATER}")
    assert one_device().compiler_options == {}


def test_an_option_that_another_release_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch):
    known = one_device().compiler_options
    monkeypatch.setitem(COMPILER_OPTIONS, "cpu", COMPILER_OPTIONS["cpu"] | {"xla_no_such_option": True})
    assert one_device().compiler_options == known
    monkeypatch.setitem(COMPILER_OPTIONS, "cpu", {"xla_backend_optimization_level": "many"})
    with pytest.raises(Exception, match="xla_backend_optimization_level"):
        _ = one_device().compiler_options
