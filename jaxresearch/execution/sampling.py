"""Sampling inside a worker: the verified program's logits, a checkpoint's state, and our own choice of each token.

The program has one shape, that of evaluation. One row of the batch is used, and the whole context is computed anew for
each token; there is no KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxresearch.data.dataset import Corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, SampleRequest, StateRequest
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.program.mesh import make_placement
from jaxresearch.program.program import load
from jaxresearch.training.checkpoints import read_state
from jaxresearch.training.seal import DamagedCheckpointError, checkpoint_folder, find_named, read_seal

Predict = Callable[[np.ndarray, int], np.ndarray]
"""(i32[context], position) -> f32[V], the logits of what follows `position`."""


class SamplingHost(Protocol):
    """The worker, as sampling sees it."""

    settings: WorkerSettings
    corpus: Corpus
    devices: list[Any]

    def facts(self) -> dict: ...
    def progress(self, progress: RunProgress, *, force: bool = False) -> None: ...


def sample(host: SamplingHost, request: SampleRequest) -> dict[str, Any]:
    """{"text": what follows the prompt, "tokens": its ids, "ended": whether the document ended there}.

    Raises `JaxresearchError` where the checkpoint or the program cannot be used.
    """
    predict = _predictor(host, request)
    tokenizer = host.corpus.tokenizer
    ids = generate(
        predict,
        [tokenizer.bos, *map(int, tokenizer.encode(request.prompt))],
        context=host.settings.context,
        end=tokenizer.bos,
        request=request,
        on_token=lambda count: host.progress(RunProgress("sample", count / request.tokens, step=count)),
    )
    ended = bool(ids) and ids[-1] == tokenizer.bos
    return {"text": tokenizer.decode(ids), "tokens": ids, "ended": ended}


def _predictor(host: SamplingHost, request: SampleRequest) -> Predict:
    program = load(host.settings.programs, request.program)
    platform = host.facts()["platform"]
    if program.manifest.platform != platform:
        raise JaxresearchError(
            f"The program was made for {program.manifest.platform}, and this machine has {platform}.",
            fix="Sample on a machine like the one that trained it.",
        )
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in program.state)
    placement = make_placement(host.devices, fsdp=host.settings.fsdp, state_bytes=size)
    places = [placement.leaf(leaf) for leaf in program.state]
    targets = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for leaf, place in zip(program.state, places, strict=True)
    ]
    leaves = restored(host.settings.runs, request, targets)
    batch, context = program.manifest.evaluation_batch, program.manifest.context

    def last_logits(leaves: list[jax.Array], row: jax.Array, position: jax.Array) -> jax.Array:
        tokens = jnp.broadcast_to(row, (batch, context))
        tokens = jax.lax.with_sharding_constraint(tokens, placement.rows(batch))
        return program.logits.call(*leaves, tokens)[0][0, position]

    copied = placement.replicated
    compiled = jax.jit(last_logits, in_shardings=(places, copied, copied), out_shardings=copied)
    return lambda row, position: np.asarray(compiled(leaves, jnp.asarray(row), jnp.int32(position)))


def restored(runs: Path, request: StateRequest, targets: Sequence[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """The leaves of the state that `request` names, placed as `targets` say. Raises `JaxresearchError`."""
    path = find_named(checkpoint_folder(runs, request.identity), request.checkpoint)
    try:
        if path is None:
            raise DamagedCheckpointError("it is not there")
        leaves, _ = read_state(path, read_seal(path, name=request.checkpoint), targets)
    except DamagedCheckpointError as error:
        raise JaxresearchError(
            f"The checkpoint cannot be used: {error}.", fix="Check the study with `jaxresearch verify STUDY`."
        ) from None
    return leaves


def generate(
    predict: Predict,
    ids: Sequence[int],
    *,
    context: int,
    end: int,
    request: SampleRequest,
    on_token: Callable[[int], None] = lambda count: None,
) -> list[int]:
    """Tokens that follow `ids`: as many as are asked for, or up to and with `end`. Only the last `context` are seen.

    end: BOS, which stands between documents. The other specials were in no text, so they are never chosen.
    """
    randomness = np.random.Generator(np.random.Philox(request.seed))
    text, chosen = list(ids), []
    while len(chosen) < request.tokens and (not chosen or chosen[-1] != end):
        window = text[-context:]
        row = np.full(context, end, np.int32)  # causal: what stands behind the position is not seen
        row[: len(window)] = window
        logits = predict(row, len(window) - 1)[: end + 1]
        token = choose(logits, request.temperature, request.top_k, randomness)
        text.append(token)
        chosen.append(token)
        on_token(len(chosen))
    return chosen


def choose(logits: np.ndarray, temperature: float, top_k: int | None, randomness: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature) over the `top_k` likeliest; the likeliest at temperature 0.

    logits: f32[V]. Of equal ones the lower id is the likelier. Raises `JaxresearchError` when they are not finite.
    """
    if not np.isfinite(logits).all():
        raise JaxresearchError("The program's logits are not finite on this text.", fix="Try another prompt.")
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:top_k]
    if temperature == 0:
        return int(order[0])
    exact = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the likeliest -inf, as it should
        weights = np.cumsum(np.exp((exact - exact[0]) / temperature))
    at = np.searchsorted(weights, randomness.random() * weights[-1], side="right")
    return int(order[min(at, len(order) - 1)])
