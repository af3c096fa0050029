"""The GPT.

Shapes stand in names: B rows, T time, D width, H query heads, G key/value heads, K head size, V vocabulary.
`h` is the recipe's Hyperparameters. Modules hold parameters, always float32; every number they compute with comes from
`h`, so that a new hyperparameter is one line in recipe.py and `h.its_name` wherever it is used.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.kernels import attention, rotate_and_norm


class GPT(nnx.Module):
    """Token embedding, blocks, head. The embedding, x0, also enters every block."""

    def __init__(self, h, rngs):
        self.token_embedding = normal(rngs, (h.vocab_size, h.width), std=h.embedding_std)
        self.blocks = nnx.List([Block(h, layer, rngs) for layer in range(h.depth)])
        self.head = normal(rngs, (h.width, h.vocab_size), std=h.head_std)

    def __call__(self, tokens_BxT, h):
        """Logits f32[B, T, V] of the token that follows each token."""
        return cap(self.raw_logits(tokens_BxT, h), h)

    def raw_logits(self, tokens_BxT, h):
        """[B, T, V] in the precision of the activations; `cap` makes logits of them."""
        x0_BxTxD = norm(lookup(self.token_embedding, tokens_BxT, h))
        x_BxTxD = x0_BxTxD
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD, x0_BxTxD, tokens_BxT, h)
        return linear(norm(x_BxTxD), self.head)


class Block(nnx.Module):
    """BxTxD -> BxTxD: attention, then the MLP, each added to the stream, which is first mixed with x0."""

    def __init__(self, h, layer, rngs):
        self.resid_lambda = nnx.Param(jnp.full((), h.resid_init, jnp.float32))
        self.x0_lambda = nnx.Param(jnp.full((), h.x0_init, jnp.float32))
        self.attention = Attention(h, layer, rngs)
        self.mlp = MLP(h, rngs)

    def __call__(self, x_BxTxD, x0_BxTxD, tokens_BxT, h):
        x_BxTxD = (self.resid_lambda[...] * x_BxTxD + self.x0_lambda[...] * x0_BxTxD).astype(h.dtype)
        x_BxTxD = x_BxTxD + self.attention(norm(x_BxTxD), tokens_BxT, h)
        return x_BxTxD + self.mlp(norm(x_BxTxD), h)


class Attention(nnx.Module):
    """BxTxD -> BxTxD. In every second layer, the last one included, v also gets an embedding of its token, gated by x."""

    def __init__(self, h, layer, rngs):
        self.window = attention_window(h, layer)
        self.query = uniform(rngs, (h.width, h.heads * h.head_size), h)
        self.key = uniform(rngs, (h.width, h.kv_heads * h.head_size), h)
        self.value = uniform(rngs, (h.width, h.kv_heads * h.head_size), h)
        self.output = zeros((h.heads * h.head_size, h.width))
        self.has_value_embedding = h.value_embeddings and (h.depth - 1 - layer) % 2 == 0
        if self.has_value_embedding:
            self.value_embedding = uniform(rngs, (h.vocab_size, h.kv_heads * h.head_size), h)
            self.gate = zeros((min(32, h.width), h.kv_heads))

    def __call__(self, x_BxTxD, tokens_BxT, h):
        B, T, _ = x_BxTxD.shape
        q_BxTxHxK = linear(x_BxTxD, self.query).reshape(B, T, h.heads, h.head_size)
        k_BxTxGxK = linear(x_BxTxD, self.key).reshape(B, T, h.kv_heads, h.head_size)
        v_BxTxGxK = linear(x_BxTxD, self.value).reshape(B, T, h.kv_heads, h.head_size)
        if self.has_value_embedding:
            gate_BxTxG = 2 * jax.nn.sigmoid(linear(x_BxTxD[:, :, :32], self.gate))
            embedding_BxTxGxK = lookup(self.value_embedding, tokens_BxT, h).reshape(v_BxTxGxK.shape)
            v_BxTxGxK = v_BxTxGxK + gate_BxTxG[..., None] * embedding_BxTxGxK
        cos_Tx1xP, sin_Tx1xP = rotary(T, h)
        q_BxTxHxK = rotate_and_norm(q_BxTxHxK, cos_Tx1xP, sin_Tx1xP)
        k_BxTxGxK = rotate_and_norm(k_BxTxGxK, cos_Tx1xP, sin_Tx1xP)
        y_BxTxHxK = attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, self.window)
        return linear(y_BxTxHxK.reshape(B, T, h.heads * h.head_size), self.output)


class MLP(nnx.Module):
    """BxTxD -> BxTxD through F = mlp_ratio x D hidden units; their activation is relu squared."""

    def __init__(self, h, rngs):
        self.inward = uniform(rngs, (h.width, h.mlp_ratio * h.width), h)
        self.outward = zeros((h.mlp_ratio * h.width, h.width))

    def __call__(self, x_BxTxD, h):
        hidden_BxTxF = jnp.square(jax.nn.relu(linear(x_BxTxD, self.inward)))
        return linear(hidden_BxTxF, self.outward)


def cap(raw_BxTxV, h):
    """Logits in float32, bent so that none comes beyond +-softcap."""
    logits_BxTxV = raw_BxTxV.astype(jnp.float32)
    return h.softcap * jnp.tanh(logits_BxTxV * (1 / h.softcap))


def attention_window(h, layer):
    """Tokens that a layer sees, itself included: "S" in the pattern is short, "L" the whole context, as is the last."""
    letter = h.window_pattern[layer % len(h.window_pattern)]
    is_last = layer == h.depth - 1
    return h.context if letter == "L" or is_last else max(1, round(h.short_window * h.context))


def linear(x, weight_IxO):
    """x @ weight in the precision of x. Every matrix product of activations and weights goes through here.

    All rows are laid flat first: XLA's CPU backend trains 1.7 times as fast than with a batched product.
    """
    flat_RxI = x.reshape(-1, x.shape[-1])
    return (flat_RxI @ weight_IxO[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)


def lookup(table_VxD, tokens_BxT, h):
    """The table's row for each token, BxTxD."""
    return table_VxD[...][tokens_BxT].astype(h.dtype)


def norm(x):
    """RMS norm over the last axis, without a gain."""
    x_f32 = x.astype(jnp.float32)
    return (x_f32 * jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def rotary(T, h):
    """Cosine and sine, Tx1xP, of the angle by which each token turns the pair (i, i + P) of a head, P = K/2: time x
    rope_base^(-i/P), https://arxiv.org/abs/2104.09864."""
    P = h.head_size // 2
    frequency_P = h.rope_base ** (-jnp.arange(P, dtype=jnp.float32) / P)
    angle_Tx1xP = jnp.arange(T, dtype=jnp.float32)[:, None, None] * frequency_P
    return jnp.cos(angle_Tx1xP), jnp.sin(angle_Tx1xP)


def normal(rngs, shape, std):
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))


def uniform(rngs, shape, h):
    """Uniform with standard deviation matrix_init / sqrt(width)."""
    bound = h.matrix_init * (3 / h.width) ** 0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))


def zeros(shape):
    """Output projections start at zero, so that each block starts as the identity, and gates at 2 * sigmoid(0) = 1."""
    return nnx.Param(jnp.zeros(shape))
