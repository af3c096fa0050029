"""The trainer on a program of two numbers, whose every value can be computed by hand."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.budget import Budget
from jaxresearch.data.batches import Batches
from jaxresearch.program.mesh import one_device
from jaxresearch.program.program import load, store
from jaxresearch.program.verifier import ProgramLimits, Signature, verify
from jaxresearch.training.trainer import TrainingFailedError, compile_program, train
from tests.program.modules import exported
from tests.training.test_meter import Clock

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
LR = {"lr": 0.25}
ROWS = {length: np.arange(50 * (length + 1), dtype=np.uint16).reshape(50, length + 1) % 100 for length in (4, 8)}


def init(seed, lr):
    """(weight, a record of the progress and of the tokens that the steps saw)."""
    return [seed.astype(jnp.float32) / 8 + 1, jnp.zeros(3)]


def step(weight, seen, tokens, progress, lr):
    mean = tokens.astype(jnp.float32).mean() / 100
    gradient = 2 * (weight - mean)
    record = seen + jnp.stack([progress, jnp.float32(1), tokens.sum().astype(jnp.float32)])
    return [weight - lr * gradient, record, (weight - mean) ** 2]


def logits(weight, seen, tokens):
    return [jnp.broadcast_to(weight, (2, 4, 8))]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Phases -> the compiled program, with another train_step if one is given."""
    root = tmp_path_factory.mktemp("programs")
    known = {}

    def make(phases=((1.0, 4, 4),), step=step, init=init):
        key = phases, step, init
        if key not in known:
            leaves = SCALAR, jax.ShapeDtypeStruct((3,), jnp.float32)
            blobs = [exported(init, jax.ShapeDtypeStruct((), jnp.uint32), SCALAR)]
            for _, batch, length in phases:
                tokens = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)
                blobs.append(exported(step, *leaves, tokens, SCALAR, SCALAR))
            blobs.append(exported(logits, *leaves, jax.ShapeDtypeStruct((2, 4), jnp.int32)))
            facts = {"traced": ("lr",), "phases": phases, "metrics": ("loss",)}
            verified = verify(blobs, **facts, wanted=Signature(2, 4, 8), limits=ProgramLimits(10**6, 1000, 100))
            names = {"platform": "cpu", "leaves": ("w", "s"), "signature": (2, 4, 8)}
            known[key] = compile_program(load(root, store(root, verified, **facts, **names).program))
        return known[key]

    return make


def run(program, budget="5steps", seed=0, **settings):
    defaults = {
        "traced": LR,
        "budget": Budget.parse(budget),
        "seed": seed,
        "batches": lambda length: Batches(ROWS[length], 1, seed),
        "wall_cap_seconds": 60,
    }
    return train(program, **{**defaults, **settings})


def by_hand(steps, seed=0, batch=4, length=4):
    """Losses and final state of a plain jax loop over the same rows, compiled as programs are."""
    state, source, cursor, losses, plain = init(jnp.uint32(seed), 0.25), Batches(ROWS[length], 1, seed), 0, [], None
    for number in range(steps):
        tokens, cursor = source.take(cursor, batch)
        arguments = (*state, tokens, jnp.float32(number / steps), jnp.float32(0.25))
        plain = plain or jax.jit(step).lower(*arguments).compile(one_device().compiler_options)
        *state, loss = plain(*arguments)
        losses.append(float(loss))
    return losses, state


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_training_is_the_plain_loop_and_warming_up_trains_nothing(compiled, steps):
    """A warm-up that trained, a first batch that was skipped, or one step too many would move every figure."""
    losses, (weight, seen) = by_hand(steps)
    trained = run(compiled(), f"{steps}steps")
    assert [loss for _, loss in trained.curve] == [round(loss, 5) for loss in losses]
    assert trained.loss == losses[-1]
    assert np.array_equal(trained.leaves[0], weight)
    assert np.array_equal(trained.leaves[1], seen)


def test_a_step_warms_up_once(compiled):
    program, called = compiled(), 0

    def counted(*arguments):
        nonlocal called
        called += 1
        return step_of_program(*arguments)

    (step_of_program,) = program.steps
    program = replace(program, steps=(counted,), warm=set())
    for expected in (3 + 1, 3, 3):
        called = 0
        run(program, "3steps")
        assert called == expected


def test_the_step_is_told_the_share_of_the_budget_that_is_spent(compiled):
    trained = run(compiled(), "5steps")
    progress, steps, _ = np.asarray(trained.leaves[1])
    assert steps == trained.steps == 5
    assert progress == pytest.approx(0 + 0.2 + 0.4 + 0.6 + 0.8)
    assert [round(at, 5) for at, _ in trained.curve] == [0, 0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize(("budget", "steps"), [("160tok", 10), ("175tok", 10), ("16tok", 1), ("3steps", 3)])
def test_steps_and_tokens_are_exact(compiled, budget, steps):
    trained = run(compiled(), budget)
    assert (trained.steps, trained.tokens) == (steps, 16 * steps)


def test_flops_are_exact(compiled):
    program = compiled()
    one = program.program.manifest.step_flops[0]
    trained = run(program, f"{one * 6.5:.1f}flop")
    assert (trained.steps, trained.flops) == (6, 6 * one)


@pytest.mark.parametrize("budget", ["15tok", "1flop"])
def test_a_budget_below_one_step_fails_clearly(compiled, budget):
    with pytest.raises(TrainingFailedError, match="one step alone exceeds the budget") as caught:
        run(compiled(), budget)
    assert not caught.value.timeout


def test_an_uncountable_step_is_refused_under_a_flop_budget(compiled):
    def endless(weight, seen, tokens, progress, lr):
        count = jax.lax.while_loop(lambda n: n < tokens[0, 0], lambda n: n + 1, 0)
        return [weight, seen, jnp.float32(1) + 0 * count]

    with pytest.raises(TrainingFailedError, match="trip count is unknown"):
        run(compiled(step=endless), "1e9flop")
    assert run(compiled(step=endless), "2steps").steps == 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(compiled):
    first, again, other = run(compiled(), seed=3), run(compiled(), seed=3), run(compiled(), seed=4)
    assert first.curve == again.curve
    assert np.array_equal(first.leaves[1], again.leaves[1])
    assert first.curve != other.curve
    assert first.seed_matters


def test_phases_change_batch_and_length_when_their_share_is_spent(compiled):
    phases = ((0.5, 4, 4), (1.0, 3, 8))
    trained = run(compiled(phases=phases), "96tok")
    assert trained.tokens == 3 * 16 + 2 * 24  # 48 of 96 tokens is half
    assert trained.steps == 5
    first, second = Batches(ROWS[4], 1, 0).take(0, 12)[0], Batches(ROWS[8], 1, 0).take(0, 6)[0]
    assert np.asarray(trained.leaves[1])[2] == first.sum() + second.sum()


@pytest.mark.parametrize(
    ("budget", "first", "second"), [("10steps", 5, 5), ("10s", 5, 5), ("6x", 3, 3), ("96tok", 3, 2)]
)
def test_phases_change_under_every_kind_of_budget(compiled, budget, first, second):
    """6x: FLOPs of six steps of the first phase."""
    program, clock = compiled(phases=((0.5, 4, 4), (1.0, 3, 8))), Clock()
    one, other = program.program.manifest.step_flops
    if budget == "6x":
        budget, second = f"{6 * one}flop", int(3 * one // other)
        assert second > 0

    def tick(_):
        clock.now += 1.0

    trained = run(program, budget, clock=clock, on_progress=tick)
    assert trained.tokens == first * 16 + second * 24
    assert trained.flops == first * one + second * other
    assert trained.steps == first + second


def test_an_uncountable_step_of_a_later_phase_is_refused_before_the_first(compiled):
    def endless(weight, seen, tokens, progress, lr):
        trips = 3 if tokens.shape == (4, 5) else tokens[0, 0]
        count = jax.lax.while_loop(lambda n: n < trips, lambda n: n + 1, 0)
        return [weight, seen, jnp.float32(1) + 0 * count]

    program = compiled(phases=((0.5, 4, 4), (1.0, 3, 8)), step=endless)
    assert [flops is None for flops in program.program.manifest.step_flops] == [False, True]
    with pytest.raises(TrainingFailedError, match="trip count is unknown") as caught:
        run(program, "1000000flop")
    assert caught.value.step == 0


def test_a_loss_that_is_not_finite_is_a_crash_with_its_step(compiled):
    def breaks(weight, seen, tokens, progress, lr):
        return [weight, seen, jnp.where(progress >= 0.6, jnp.nan, 1.0)]

    with pytest.raises(TrainingFailedError, match="not finite at step 3") as caught:
        run(compiled(step=breaks), "5steps")
    assert (caught.value.step, caught.value.timeout) == (3, False)
    assert [loss for _, loss in caught.value.curve] == [1.0, 1.0, 1.0]


def test_a_loss_that_explodes_is_a_crash_with_its_step(compiled):
    def explodes(weight, seen, tokens, progress, lr):
        return [weight, seen, jnp.where(progress >= 0.8, 1e6, 1.0)]

    with pytest.raises(TrainingFailedError, match="exploded to 1e\\+06 at step 4"):
        run(compiled(step=explodes), "5steps")


def test_a_run_that_outlasts_the_wall_cap_is_cut_as_a_timeout(compiled):
    clock = Clock()

    def tick(_):
        clock.now += 10

    with pytest.raises(TrainingFailedError, match=r"cut after 45 s, at .*%.* of its budget, step 6") as caught:
        run(compiled(), "1000steps", clock=clock, on_progress=tick, wall_cap_seconds=45)
    assert caught.value.timeout


def test_a_budget_in_seconds_ends_by_our_clock(compiled):
    clock, reported = Clock(), []

    def tick(progress):
        reported.append(progress)
        clock.now += 1.5

    trained = run(compiled(), "10s", clock=clock, on_progress=tick)
    assert trained.steps == len(reported) == 7
    assert trained.train_seconds == 10.5
    assert np.asarray(trained.leaves[1])[0] == pytest.approx(sum(1.5 * step / 10 for step in range(7)))


def test_steps_that_outrun_a_budget_in_seconds_give_no_score(compiled):
    """One step that does the work of three budgets is below the wall cap, and is no run of this budget."""
    clock = Clock()

    def tick(_):
        clock.now += 28

    with pytest.raises(TrainingFailedError, match=r"its steps outran the budget: 1 of them took 28\.0 s") as caught:
        run(compiled(), "10s", clock=clock, on_progress=tick)
    assert caught.value.timeout


def test_no_step_is_begun_beside_one_whose_length_is_unknown_or_large(compiled):
    """Steps are queued without waiting. Were the first ones, two would be done before the clock had moved at all."""

    def breaks(weight, seen, tokens, progress, lr):
        return [weight, seen, jnp.where(progress >= 0.25, jnp.nan, 1.0)]

    clock, reported = Clock(), []

    def tick(progress):
        reported.append(progress.step)
        clock.now += 2.0

    with pytest.raises(TrainingFailedError, match="not finite at step 2"):
        run(compiled(step=breaks), "10s", clock=clock, on_progress=tick)
    assert reported == [1, 2]


def test_progress_is_reported_for_each_step(compiled):
    reported = []
    run(compiled(), "4steps", on_progress=reported.append)
    assert [(one.stage, one.step, one.progress) for one in reported] == [("train", n, n / 4) for n in range(1, 5)]


def test_a_step_that_changes_nothing_and_an_init_that_ignores_its_seed_are_noticed(compiled):
    def idle(weight, seen, tokens, progress, lr):
        return [weight, seen, jnp.float32(1)]

    def lucky(seed, lr):
        return [jnp.float32(1.5) + 0 * seed, jnp.zeros(3)]

    trained = run(compiled(step=idle, init=lucky))
    assert (trained.changed, trained.seed_matters) == (False, False)
    assert run(compiled()).changed
