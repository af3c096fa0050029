"""Attention that skips what a window hides, queries and keys made ready for it in one go, and a loss that keeps no logits:
where speed may cost clarity. Gradients are written out here: who changes one way must change the other.
"""

import functools

import jax
import jax.numpy as jnp

CHUNK = 128  # queries handled together, at least
CHUNKS = 8  # at most: each has shapes of its own to compile


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window):
    """Causal softmax attention in which a token sees itself and the `window - 1` tokens before it.

    Each of the G key/value heads serves R = H / G query heads; scores are scaled by K^-0.5. Returns BxTxHxK.

    It is chunked_attention with a mark around it: in the place of what is marked here, unless it is edited, the
    laboratory may put a kernel of the machine's. What is edited runs as it is written. A mark can be neither vmapped nor
    differentiated twice; chunked_attention can.
    """
    return _marked(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window=window)


def _forward(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window):
    return attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window), (q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)


def _backward(window, saved, dy_BxTxHxK):
    return _marked_gradient(*saved, dy_BxTxHxK, window=window)


attention.defvjp(_forward, _backward)


@functools.partial(jax.lax.composite, name="jaxresearch.causal_attention")
def _marked(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, *, window):
    return chunked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, window)


@functools.partial(jax.lax.composite, name="jaxresearch.causal_attention_gradient")
def _marked_gradient(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, dy_BxTxHxK, *, window):
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


@jax.custom_vjp
def rotate_and_norm(x_BxTxHxK, cos_Tx1xP, sin_Tx1xP):
    """Turn the pair (i, i + P) of each head, P = K/2, by the angle of its place, and make the head's RMS 1. BxTxHxK.

    A turn keeps lengths, so that the norm comes first here and rounding once, at the end. The gradient needs only what
    goes out and is turned back; cos and sin get none.
    """
    return _rotate_and_norm(x_BxTxHxK, cos_Tx1xP, sin_Tx1xP)[0]


def _rotate_and_norm(x_BxTxHxK, cos_Tx1xP, sin_Tx1xP):
    x_f32 = x_BxTxHxK.astype(jnp.float32)
    scale_BxTxHx1 = jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + 1e-6)
    y_BxTxHxK = _turn(x_f32 * scale_BxTxHx1, cos_Tx1xP, sin_Tx1xP).astype(x_BxTxHxK.dtype)
    return y_BxTxHxK, (y_BxTxHxK, scale_BxTxHx1, cos_Tx1xP, sin_Tx1xP)


def _rotate_and_norm_gradient(saved, dy_BxTxHxK):
    y_BxTxHxK, scale_BxTxHx1, cos_Tx1xP, sin_Tx1xP = saved
    y_f32, dy_f32 = y_BxTxHxK.astype(jnp.float32), dy_BxTxHxK.astype(jnp.float32)
    along_BxTxHx1 = jnp.mean(y_f32 * dy_f32, axis=-1, keepdims=True)
    dx_f32 = _turn(scale_BxTxHx1 * (dy_f32 - along_BxTxHx1 * y_f32), cos_Tx1xP, -sin_Tx1xP)
    return dx_f32.astype(dy_BxTxHxK.dtype), None, None


def _turn(x_BxTxHxK, cos_Tx1xP, sin_Tx1xP):
    cos_Tx1xK = jnp.concatenate([cos_Tx1xP, cos_Tx1xP], axis=-1)
    sin_Tx1xK = jnp.concatenate([sin_Tx1xP, -sin_Tx1xP], axis=-1)
    other_BxTxHxK = jnp.roll(x_BxTxHxK, cos_Tx1xP.shape[-1], axis=-1)  # each one's partner in its pair
    return x_BxTxHxK * cos_Tx1xK + other_BxTxHxK * sin_Tx1xK


rotate_and_norm.defvjp(_rotate_and_norm, _rotate_and_norm_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(raw_BxTxV, targets_BxT, cap):
    """The cross-entropy f32[B, T], in nats, of logits that are `cap` of each raw one.

    Nothing of the size of the logits is kept for the gradient but `raw_BxTxV` itself: cap and softmax are taken again.
    `cap` maps each element alone and does not fall; what it closes over gets no gradient.
    """
    return _cross_entropy(raw_BxTxV, targets_BxT, cap)[0]


def _cross_entropy(raw_BxTxV, targets_BxT, cap):
    top_BxTx1 = cap(jnp.max(raw_BxTxV, axis=-1, keepdims=True))
    sum_BxT = jnp.sum(jnp.exp(cap(raw_BxTxV) - top_BxTx1), axis=-1)
    log_z_BxT = jnp.log(sum_BxT) + top_BxTx1[..., 0]
    target_BxTx1 = jnp.take_along_axis(raw_BxTxV, targets_BxT[..., None], axis=-1)
    return log_z_BxT - cap(target_BxTx1)[..., 0], (raw_BxTxV, targets_BxT, log_z_BxT)


def _cross_entropy_gradient(cap, saved, dy_BxT):
    # Behind a barrier, or XLA shares the tanh of a cap with the forward pass: by writing it to memory, in float32.
    raw_BxTxV, targets_BxT, log_z_BxT = jax.lax.optimization_barrier(saved)
    logits_BxTxV, pull = jax.vjp(cap, raw_BxTxV)
    is_target_BxTxV = targets_BxT[..., None] == jax.lax.broadcasted_iota(jnp.int32, raw_BxTxV.shape, 2)
    difference_BxTxV = jnp.exp(logits_BxTxV - log_z_BxT[..., None]) - is_target_BxTxV
    return *pull(dy_BxT[..., None] * difference_BxTxV), None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)
