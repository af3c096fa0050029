"""Options for XLA: every one is known to the XLA that is installed, for whichever platform it is meant."""

import jax
import jax.numpy as jnp
import pytest

from jaxresearch.program.mesh import COMPILER_OPTIONS, one_device


@pytest.mark.parametrize("platform", COMPILER_OPTIONS)
def test_this_jax_knows_them(platform):
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4)))
    lowered.compile(COMPILER_OPTIONS[platform])
    with pytest.raises(Exception, match="xla_no_such_option"):
        lowered.compile({"xla_no_such_option": True})


def test_what_the_user_says_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert one_device().compiler_options == COMPILER_OPTIONS["cpu"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert one_device().compiler_options == {}
