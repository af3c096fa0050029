"""Every edit of the library applies to the subject, traces, changes the program, and peeks at no later token."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from agents.choice import Tried, choose
from agents.library import HINTS, LIBRARY, Idea
from jaxresearch.proposal import Candidate, Hyperparameter, Proposal, apply

FILES = {f"models/{path.name}": path.read_text() for path in sorted(Path(models.__file__).parent.glob("*.py"))}
TINY = {"depth": 2, "width": 48, "head_size": 16, "vocab_size": 64, "context": 16, "batch": 4, "window_pattern": "SL"}


@contextmanager
def subject(files, folder):
    """The recipe module of a source tree, imported as a candidate imports it; the real `models` comes back after."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "models"}
    sys.path.insert(0, str(folder))
    try:
        from models import recipe

        assert recipe.__file__.startswith(str(folder))
        yield recipe
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
            del sys.modules[name]
        sys.modules.update(saved)


def traced_program(recipe) -> tuple[str, tuple]:
    """The text of the three functions, and the traced recipe for more."""
    h = recipe.hyperparameters(TINY)
    built = recipe.build(h)
    names = [field.name for field in dataclasses.fields(h) if field.metadata["traced"]]
    values = {name: jnp.float32(getattr(h, name)) for name in names}
    state = jax.eval_shape(built.init, jnp.uint32(0), values)
    program = [str(jax.make_jaxpr(built.init)(jnp.uint32(0), values)), str(built.phases)]
    for _, batch, context in built.phases:
        tokens = jax.ShapeDtypeStruct((batch, context + 1), jnp.int32)
        step, (after, metrics) = jax.make_jaxpr(built.train_step, return_shape=True)(
            state, tokens, jnp.float32(0.5), values
        )
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert metrics["loss"].shape == ()
        program.append(str(step))
    logits = jax.make_jaxpr(built.logits)(state, jax.ShapeDtypeStruct((2, h.context), jnp.int32))
    assert [each.shape for each in logits.out_avals] == [(2, h.context, h.vocab_size)]
    assert logits.out_avals[0].dtype == jnp.float32
    return "\n".join([*program, str(logits)]), (built, state, values)


def logits_of(built, state, values, tokens):
    """Logits with every parameter random: at the zeros of the first step, blocks would say nothing."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), state["params"])
    return built.logits({"params": params, "optimizer": None, "traced": values}, tokens)


def edited(idea: Idea, files=FILES):
    edits = idea.edits(files)
    if edits is None:
        return None
    return apply(Proposal(parent=0, hypothesis=idea.hypothesis, edits=tuple(edits)), Candidate(files)).files


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    with subject(FILES, tmp_path_factory.mktemp("pristine")) as recipe:
        return traced_program(recipe)[0]


@pytest.mark.parametrize("idea", LIBRARY, ids=lambda idea: idea.tag)
def test_an_idea_applies_traces_changes_the_program_and_stays_causal(idea, tmp_path, pristine):
    files = edited(idea)
    assert files is not None
    assert idea.edits(files) is None, "it must decline where it was applied"
    assert all(len(line) <= 120 for edit in idea.edits(FILES) for line in edit.replace.splitlines())
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, 64, (2, 16)), jnp.int32)
    other = tokens.at[:, 9:].set(jnp.asarray(rng.integers(0, 64, (2, 7)), jnp.int32))
    with subject(files, tmp_path) as recipe:
        program, (built, state, values) = traced_program(recipe)
        assert program != pristine
        before, after = (logits_of(built, state, values, each) for each in (tokens, other))
    assert bool(jnp.isfinite(before).all())
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert not np.array_equal(before[:, 9:], after[:, 9:])


def test_the_library_is_large_varied_and_unambiguous():
    assert len(LIBRARY) >= 30
    assert len({idea.tag for idea in LIBRARY}) == len(LIBRARY)
    assert len(Counter(idea.family for idea in LIBRARY)) >= 12
    assert all(0 < idea.promise < 1 and "&" not in idea.tag and "=" not in idea.tag for idea in LIBRARY)


def test_ideas_decline_what_is_no_longer_there():
    assert all(idea.edits({}) is None for idea in LIBRARY)
    assert all(idea.edits({path: text * 2 for path, text in FILES.items()}) is None for idea in LIBRARY)


@pytest.mark.parametrize("first", ["swiglu", "parallel-block", "bigram-embedding", "z-loss"])
def test_ideas_apply_to_descendants_or_decline(first, tmp_path):
    by_tag = {idea.tag: idea for idea in LIBRARY}
    files = edited(by_tag[first])
    applied = [tag for tag, idea in by_tag.items() if edited(idea, files) is not None]
    assert len(applied) > 0.7 * len(LIBRARY)
    together = files
    for tag in applied:
        together = edited(by_tag[tag], together) or together
    with subject(together, tmp_path) as recipe:
        traced_program(recipe)


def declared(config) -> list[Hyperparameter]:
    """The subject's hyperparameters as its manifest states them."""
    from models import recipe

    h = recipe.hyperparameters(config)
    kept = ("low", "high", "log", "traced", "choices", "doc")
    return [
        Hyperparameter(each.name, getattr(h, each.name), **{name: each.metadata[name] for name in kept})
        for each in dataclasses.fields(h)
    ]


def test_hints_name_hyperparameters_of_the_subject():
    assert set(HINTS) <= {each.name for each in declared({})}


def test_moves_of_the_real_subject_are_in_bounds_and_never_repeat():
    hyperparameters = {each.name: each for each in declared({})}
    tried: list[Tried] = []
    for number in range(1, 121):
        rng = np.random.default_rng(number)
        move = choose(list(hyperparameters.values()), FILES, tried, frozenset(), rng)
        for name, value in move.config.items():
            known = hyperparameters[name]
            assert type(value) is type(known.value)
            assert value != known.value
            assert not known.choices or value in known.choices
            assert known.low is None or known.low <= value <= known.high
            assert name not in ("vocab_size", "context", "microbatch", "pass_size")
        moves = {name: (hyperparameters[name].value, value) for name, value in move.config.items()}
        tried.append(Tried(number, "discard", float(rng.normal()) * 0.01, move.tag, moves, bool(move.edits)))
    assert len({each.tag for each in tried}) == 120


def test_the_first_moves_are_worth_a_run():
    """Over many seeds, the first eight moves nearly always hold one of the changes that are known to pay."""
    hyperparameters = declared({})
    hits = 0
    for seed in range(40):
        tried: list[Tried] = []
        for number in range(1, 9):
            move = choose(hyperparameters, FILES, tried, frozenset(), np.random.default_rng([seed, number]))
            moves = {name: (None, value) for name, value in move.config.items()}
            tried.append(Tried(number, "discard", 0.01, move.tag, moves, bool(move.edits)))
        hits += bool({"batch=8", "depth=3"} & {each.tag for each in tried})
    assert hits >= 30


def test_what_is_not_for_search_is_not_moved_even_when_nothing_else_is_left():
    fixed = [Hyperparameter("context", 256), Hyperparameter("epsilon", 1e-8)]
    with pytest.raises(LookupError, match="nothing is left to try"):
        choose(fixed, {}, [], frozenset(), np.random.default_rng(0), ())
