"""The recipe: every hyperparameter, and `init`, `train_step` and `logits` in terms of gpt.py and optimizer.py."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from models.gpt import GPT, cap
from models.kernels import cross_entropy
from models.optimizer import optimizer


def static(default, *, low=None, high=None, log=False, choices=(), doc):
    """A hyperparameter that shapes the program. Bounds and choices say where a search should look."""
    return _field(default, low, high, log, tuple(choices), False, doc)


def traced(default, *, low, high, log=False, doc):
    """A hyperparameter that the program receives when it runs, as f32: changing it recompiles nothing."""
    return _field(default, low, high, log, (), True, doc)


def _field(default, low, high, log, choices, traced, doc):
    metadata = {"low": low, "high": high, "log": log, "choices": choices, "traced": traced, "doc": doc}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Hyperparameters:
    # The laboratory's own; no bounds, so nobody searches them.
    vocab_size: int = static(2048, doc="tokens in the vocabulary")
    context: int = static(256, doc="tokens that predict, in training rows and in evaluation")
    pass_size: int = static(0, doc="tokens x width of one forward and backward pass, at most; 0: no bound")

    # Shape
    depth: int = static(2, low=1, high=8, doc="blocks")
    width: int = static(128, choices=(64, 96, 128, 192, 256, 384, 512), doc="of the residual stream")
    head_size: int = static(64, choices=(16, 32, 64, 128), doc="of one attention head; divides the width, even")
    queries_per_kv: int = static(1, choices=(1, 2, 4), doc="query heads that share one key/value head")
    mlp_ratio: int = static(4, low=1, high=8, doc="hidden units of the MLP per unit of width")
    value_embeddings: bool = static(True, choices=(True, False), doc="add token embeddings to v in every second layer")
    window_pattern: str = static("SSSL", choices=("L", "SL", "SSL", "SSSL", "SSSSL"), doc="S short, L long; repeated")
    short_window: float = static(0.5, low=0.0625, high=1.0, log=True, doc="of the context, in layers marked S")
    softcap: float = traced(15.0, low=5, high=50, log=True, doc="logits are softcap * tanh(logits / softcap)")
    rope_base: float = traced(10_000.0, low=100, high=1_000_000, log=True, doc="longest wavelength / 2 pi, in tokens")

    # Batch
    batch: int = static(16, choices=(4, 8, 16, 32, 64, 128), doc="rows of one step")
    microbatch: int = static(0, choices=(0,), doc="rows of one forward and backward pass, at most; 0: no bound")
    dtype: str = static("float32", choices=("float32", "bfloat16"), doc="of activations; parameters stay float32")

    # Initial values
    embedding_std: float = traced(1.0, low=0.1, high=4, log=True, doc="of the token embedding")
    head_std: float = traced(0.001, low=1e-4, high=0.1, log=True, doc="of the head")
    matrix_init: float = traced(1.0, low=0.25, high=2, log=True, doc="of matrices, times 1/sqrt(width)")
    resid_init: float = traced(1.0, low=0.5, high=1.5, doc="weight of the stream that enters a block")
    x0_init: float = traced(0.1, low=0, high=0.5, doc="weight of the first embedding that is added to it")

    # Learning rates; embeddings and head are further scaled by (width / 768)^-0.5
    matrix_lr: float = traced(0.04, low=0.005, high=0.2, log=True, doc="Muon")
    embedding_lr: float = traced(0.6, low=0.05, high=3, log=True, doc="token and value embeddings")
    head_lr: float = traced(0.004, low=0.0005, high=0.05, log=True, doc="head")
    scalar_lr: float = traced(0.005, low=0.0005, high=0.05, log=True, doc="resid_lambda")
    x0_lr: float = traced(0.5, low=0.01, high=1, log=True, doc="x0_lambda")

    # Schedule, in fractions of the run
    warmup: float = traced(0.0, low=0, high=0.3, doc="in which learning rates rise from 0")
    warmdown: float = traced(0.5, low=0.1, high=1, doc="in which learning rates fall")
    final_lr_fraction: float = traced(0.0, low=0, high=0.3, doc="of the learning rates, left at the end")
    momentum_warmup: float = traced(0.3, low=0.01, high=1, doc="in which Muon's momentum rises")

    # Muon and AdamW
    momentum_start: float = traced(0.85, low=0.5, high=0.99, doc="Muon's momentum at first")
    momentum_end: float = traced(0.95, low=0.5, high=0.99, doc="Muon's momentum later")
    normuon_beta2: float = traced(0.95, low=0.8, high=0.999, doc="memory of NorMuon's row sizes")
    adam_beta1: float = traced(0.8, low=0.5, high=0.98, doc="all AdamW groups but x0_lambda")
    adam_beta2: float = traced(0.95, low=0.8, high=0.999, doc="all AdamW groups")
    x0_beta1: float = traced(0.96, low=0.5, high=0.99, doc="x0_lambda")
    weight_decay: float = traced(0.2, low=0, high=1, doc="matrices; cautious, falls linearly to 0")
    embedding_decay: float = traced(0.0, low=0, high=0.01, doc="token embedding")
    value_embedding_decay: float = traced(0.0, low=0, high=0.01, doc="value embeddings")
    head_decay: float = traced(0.0, low=0, high=0.1, doc="head")

    @property
    def heads(self):
        return self.width // self.head_size

    @property
    def kv_heads(self):
        return self.heads // self.queries_per_kv


@dataclass(frozen=True)
class Recipe:
    """What the laboratory traces. State is {"params", "optimizer", "traced"}; phases are (until_progress, batch, T)."""

    phases: tuple[tuple[float, int, int], ...]
    init: Callable
    train_step: Callable
    logits: Callable


def hyperparameters(config: Mapping[str, object]) -> Hyperparameters:
    """The defaults with `config` on top. Raises ValueError in one line for what is unknown, mistyped or infeasible."""
    known = {field.name: field for field in dataclasses.fields(Hyperparameters)}
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise ValueError(f"{name}: no such hyperparameter; {meant}")
    h = Hyperparameters(**{name: _converted(known[name], value) for name, value in config.items()})
    for name in ("vocab_size", "context", "depth", "width", "head_size", "queries_per_kv", "mlp_ratio", "batch"):
        _require(getattr(h, name) >= 1, f"{name}: {getattr(h, name)} must be at least 1.")
    _require(h.head_size % 2 == 0, f"head_size: {h.head_size} must be even, for rotary pairs.")
    _require(h.width % h.head_size == 0, f"width: {h.width} is not a multiple of head_size {h.head_size}.")
    _require(h.heads % h.queries_per_kv == 0, f"queries_per_kv: {h.queries_per_kv} does not divide {h.heads} heads.")
    _require(
        set(h.window_pattern) <= {"S", "L"} and h.window_pattern,
        f"window_pattern: {h.window_pattern!r} is not S and L.",
    )
    _require(0 < h.short_window <= 1, f"short_window: {h.short_window} is not a fraction of the context.")
    for name in ("microbatch", "pass_size"):
        _require(getattr(h, name) >= 0, f"{name}: {getattr(h, name)} must be at least 1, or 0 for no bound.")
    _require(h.dtype in ("float32", "bfloat16"), f"dtype: {h.dtype!r} is not float32 or bfloat16.")
    return h


def _converted(field, value):
    """`value` in the type of the field's default: 2.0 is a good int, 1 a good float, and nothing else is forgiven."""
    kind, is_number = type(field.default), isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and is_number and math.isfinite(value):
        return float(value)
    if kind is int and is_number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise ValueError(f"{field.name}: {value!r} is not a valid {kind.__name__}.")


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def build(hyperparameters: Hyperparameters) -> Recipe:
    """The three functions of one choice of hyperparameters, pure JAX. `traced` maps names to f32 scalars."""

    def with_values(traced):
        return dataclasses.replace(hyperparameters, **traced)

    def new_model(seed, traced):
        return GPT(with_values(traced), nnx.Rngs(jax.random.key(seed)))

    structure, _ = nnx.split(nnx.eval_shape(new_model, jnp.uint32(0), _traced_defaults(hyperparameters)))

    def loss_of(params, tokens_BxT1, h):
        raw_BxTxV = nnx.merge(structure, params).raw_logits(tokens_BxT1[:, :-1], h)
        return jnp.mean(cross_entropy(raw_BxTxV, tokens_BxT1[:, 1:], lambda raw: cap(raw, h)))

    def init(seed, traced):
        params = nnx.to_pure_dict(nnx.state(new_model(seed, traced)))
        optimizer_state = optimizer(with_values(traced), progress=jnp.float32(0)).init(params)
        return {"params": params, "optimizer": optimizer_state, "traced": traced}

    def train_step(state, tokens_BxT1, progress, traced):
        h, params = with_values(traced), state["params"]
        loss, gradients = _mean_over_microbatches(jax.value_and_grad(loss_of), params, tokens_BxT1, h)
        updates, optimizer_state = optimizer(h, progress).update(gradients, state["optimizer"], params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "optimizer": optimizer_state, "traced": traced}, {"loss": loss}

    def logits(state, tokens_BxT):
        return nnx.merge(structure, state["params"])(tokens_BxT, with_values(state["traced"]))

    phases = ((1.0, hyperparameters.batch, hyperparameters.context),)
    return Recipe(phases, init, train_step, logits)


def _traced_defaults(h):
    """Traced hyperparameters by name, as f32 scalars."""
    names = [field.name for field in dataclasses.fields(h) if field.metadata["traced"]]
    return {name: jnp.float32(getattr(h, name)) for name in names}


def rows_at_a_time(B, T, h):
    """How many of B rows of T tokens one pass takes: the most that divide B and keep to both bounds, or one."""
    most = min(B, h.microbatch or B, max(1, h.pass_size // (T * h.width)) if h.pass_size else B)
    return max(rows for rows in range(1, most + 1) if B % rows == 0)


def _mean_over_microbatches(loss_and_gradients, params, tokens_BxT1, h):
    """Loss and gradients of the batch, some rows at a time: what is kept for the gradients stays small."""
    B, T1 = tokens_BxT1.shape
    M = rows_at_a_time(B, T1 - 1, h)
    if M == B:
        return loss_and_gradients(params, tokens_BxT1, h)

    def add(total, tokens_MxT1):
        return jax.tree.map(jnp.add, total, loss_and_gradients(params, tokens_MxT1, h)), None

    parts_NxMxT1 = tokens_BxT1.reshape(-1, M, T1)
    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    total, _ = jax.lax.scan(add, zero, parts_NxMxT1)
    return jax.tree.map(lambda x: x / parts_NxMxT1.shape[0], total)
