"""The attention that the laboratory knows: only a mark that holds exactly this may be replaced by a kernel.

It is the attention of `models/kernels.py`, written down again where no candidate can edit it. The two are compared as
lowered, to the last operation, so an edit of either makes the subject's own run, never another's. A kernel must give what
`plain_attention` gives, which is the formula itself.
"""

import functools

import jax
import jax.numpy as jnp

CHUNK, CHUNKS = 128, 8
"""Queries handled together at least, and pieces that a row is cut into at most."""


@functools.partial(jax.lax.composite, name="jaxresearch.causal_attention")
def marked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, *, window):
    return chunked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window)


@functools.partial(jax.lax.composite, name="jaxresearch.causal_attention_gradient")
def marked_attention_gradient(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, dy_BxTxHxK, *, window):
    """Repeats the forward pass; what a training step did already is merged with it before it is compiled."""
    _, pull = jax.vjp(lambda q, k, v: chunked_attention(q, k, v, window), q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)
    return pull(dy_BxTxHxK)


def chunked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window):
    """Every chunk of queries meets only the keys that one of its queries may see."""
    B, T, H, K = q_BxTxHxK.shape
    G = k_BxTxGxK.shape[2]
    q_BxGxRxTxK = (q_BxTxHxK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BxGxTxK, v_BxGxTxK = k_BxTxGxK.transpose(0, 2, 1, 3), v_BxTxGxK.transpose(0, 2, 1, 3)
    size, chunks = max(CHUNK, -(-T // CHUNKS)), []
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = max(0, start - window + 1)
        k_BxGxSxK, v_BxGxSxK = k_BxGxTxK[:, :, first:stop], v_BxGxTxK[:, :, first:stop]
        chunks.append(_attend(q_BxGxRxTxK[:, :, :, start:stop], k_BxGxSxK, v_BxGxSxK, start - first, window))
    y_BxGxRxTxK = jnp.concatenate(chunks, axis=3)
    return y_BxGxRxTxK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _attend(q_BxGxRxTxK, k_BxGxSxK, v_BxGxSxK, offset, window):
    """One chunk. Query t stands at the place of key t + offset."""
    B, G, R, T, K = q_BxGxRxTxK.shape
    S = k_BxGxSxK.shape[2]
    distance_TxS = (
        offset + jax.lax.broadcasted_iota(jnp.int32, (T, S), 0) - jax.lax.broadcasted_iota(jnp.int32, (T, S), 1)
    )
    visible_TxS = (distance_TxS >= 0) & (distance_TxS < window)
    # R and T are laid flat around both products: plain matrix products, which XLA's CPU backend does fastest.
    q_BxGxRTxK = q_BxGxRxTxK.reshape(B, G, R * T, K)
    scores_BxGxRTxS = jnp.einsum("bgtk,bgsk->bgts", q_BxGxRTxK, k_BxGxSxK, preferred_element_type=jnp.float32)
    scores_BxGxRxTxS = jnp.where(visible_TxS, scores_BxGxRTxS.reshape(B, G, R, T, S), -1e30)
    # Softmax, but divided by its sum only after the values are added up: K numbers a query instead of S.
    top_BxGxRxTx1 = jax.lax.stop_gradient(jnp.max(scores_BxGxRxTxS, axis=-1, keepdims=True))
    weights_BxGxRxTxS = jnp.exp(scores_BxGxRxTxS - top_BxGxRxTx1)
    sum_BxGxRxTx1 = jnp.sum(weights_BxGxRxTxS, axis=-1, keepdims=True)
    weights_BxGxRTxS = weights_BxGxRxTxS.reshape(B, G, R * T, S).astype(v_BxGxSxK.dtype)
    y_BxGxRxTxK = jnp.einsum("bgts,bgsk->bgtk", weights_BxGxRTxS, v_BxGxSxK).reshape(B, G, R, T, K)
    return (y_BxGxRxTxK / sum_BxGxRxTx1).astype(v_BxGxSxK.dtype)


def plain_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window):
    """What all of this computes, in float32 and without a thought for speed. Memory is that of one head of one row."""
    B, T, H, K = q_BxTxHxK.shape
    R = H // k_BxTxGxK.shape[2]
    distance_TxS = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    visible_TxS = (distance_TxS >= 0) & (distance_TxS < window)

    def head(qkv):
        q_TxK, k_SxK, v_SxK = qkv
        scores_TxS = jnp.where(visible_TxS, q_TxK @ k_SxK.T * K**-0.5, -jnp.inf)
        return jax.nn.softmax(scores_TxS, axis=-1) @ v_SxK

    with jax.default_matmul_precision("highest"):
        qkv_BHxTxK = [
            jnp.repeat(x, repeats, axis=2).transpose(0, 2, 1, 3).reshape(B * H, T, K).astype(jnp.float32)
            for x, repeats in ((q_BxTxHxK, 1), (k_BxTxGxK, R), (v_BxTxGxK, R))
        ]
        return jax.lax.map(head, tuple(qkv_BHxTxK)).reshape(B, H, T, K).transpose(0, 2, 1, 3)
