"""Edits of how it is trained: schedules, Muon, AdamW, the loss, growing batch and context."""

from __future__ import annotations

from agents.library._base import OPTIMIZER, RECIPE, Idea, swaps

_DECAY = "    decay = jnp.where(progress > 1 - h.warmdown, (1 - progress) / h.warmdown, 1.0)\n"
_LINEAR = _DECAY.replace("decay =", "linear =", 1)
_WARMUP = "    warmup = jnp.where(progress < h.warmup, progress / h.warmup, 1.0)\n"
_LOSS = "        return jnp.mean(cross_entropy(raw_BxTxV, tokens_BxT1[:, 1:], lambda raw: cap(raw, h)))\n"
_LOSSES = _LOSS.replace("return jnp.mean(", "losses_BxT = ").replace(")))\n", "))\n")
_NESTEROV = "        return mix(gradients, average, momentum), average\n"
_MOMENTUM = (
    "    return h.momentum_start + (h.momentum_end - h.momentum_start)"
    " * jnp.minimum(1.0, progress / h.momentum_warmup)\n"
)
_PHASES = "    phases = ((1.0, hyperparameters.batch, hyperparameters.context),)\n"
_SHAPE_SCALE = "max(1, u_IxO.shape[1] / u_IxO.shape[0]) ** 0.5"


TRAINING_IDEAS: tuple[Idea, ...] = (
    Idea(
        "cosine-warmdown",
        "schedule",
        0.25,
        "A decay that is slow at both ends keeps the rate high for longer.",
        swaps((OPTIMIZER, _DECAY, _LINEAR + "    decay = 0.5 - 0.5 * jnp.cos(jnp.pi * linear)\n")),
    ),
    Idea(
        "sqrt-warmdown",
        "schedule",
        0.3,
        "1 - sqrt decays fast at first, then lingers at small rates (arXiv 2405.18392).",
        swaps((OPTIMIZER, _DECAY, _LINEAR + "    decay = 1 - jnp.sqrt(jnp.maximum(1 - linear, 0.0))\n")),
    ),
    Idea(
        "square-warmdown",
        "schedule",
        0.2,
        "A decay of linear squared spends more of the run at small rates.",
        swaps((OPTIMIZER, _DECAY, _LINEAR + "    decay = jnp.square(linear)\n")),
    ),
    Idea(
        "brief-warmup",
        "schedule",
        0.15,
        "The first 2 % of a run have the noisiest gradients.",
        swaps(
            (OPTIMIZER, _WARMUP, "    warmup = jnp.minimum(1.0, (progress + 0.002) / jnp.maximum(h.warmup, 0.02))\n")
        ),
    ),
    Idea(
        "momentum-cooldown",
        "schedule",
        0.2,
        "Late, with small steps, a shorter memory follows the gradient more closely.",
        swaps(
            (
                OPTIMIZER,
                _MOMENTUM,
                "    rising = jnp.minimum(1.0, progress / h.momentum_warmup)\n"
                "    falling = jnp.minimum(1.0, (1 - progress) / 0.1)\n"
                "    share = jnp.minimum(rising, falling)\n"
                "    return h.momentum_start + (h.momentum_end - h.momentum_start) * share\n",
            )
        ),
    ),
    Idea(
        "constant-decay",
        "weight decay",
        0.15,
        "Decay that stays on holds the weights small where the rate is small too.",
        swaps((OPTIMIZER, "    return h.weight_decay * (1 - progress)\n", "    return h.weight_decay\n")),
    ),
    Idea(
        "plain-decay",
        "weight decay",
        0.15,
        "Simpler: decay every weight, whether or not the update agrees.",
        swaps(
            (
                OPTIMIZER,
                "        return u_IxO + weight_decay * p_IxO * (u_IxO * p_IxO >= 0)\n",
                "        return u_IxO + weight_decay * p_IxO\n",
            )
        ),
    ),
    Idea(
        "three-muon-steps",
        "muon",
        0.15,
        "Three steps orthogonalise roughly, and cheaply; small singular values stay small.",
        swaps((OPTIMIZER, "    for a, b, c in POLAR_EXPRESS:\n", "    for a, b, c in POLAR_EXPRESS[:3]:\n")),
    ),
    Idea(
        "no-nesterov",
        "muon",
        0.12,
        "Simpler: the plain moving average, with less weight on the last noisy gradient.",
        swaps((OPTIMIZER, _NESTEROV, "        return average, average\n")),
    ),
    Idea(
        "no-normuon",
        "muon",
        0.15,
        "Simpler: after orthogonalisation the rows are nearly even already.",
        swaps((OPTIMIZER, "        normuon(h.normuon_beta2),\n", "")),
    ),
    Idea(
        "spectral-scale",
        "muon",
        0.2,
        "Scale each update by sqrt(out / in) also where it narrows (arXiv 2310.17813).",
        swaps((OPTIMIZER, _SHAPE_SCALE, "(u_IxO.shape[1] / u_IxO.shape[0]) ** 0.5")),
    ),
    Idea(
        "adam-sized-muon",
        "muon",
        0.15,
        "Muon's step grows with the larger side, as Adam's would (arXiv 2502.16982).",
        swaps((OPTIMIZER, _SHAPE_SCALE, "0.1 * max(u_IxO.shape) ** 0.5")),
    ),
    Idea(
        "adam-eps",
        "adam",
        0.1,
        "A larger eps calms the embeddings of rare tokens.",
        swaps((OPTIMIZER, "weight_decay=0.0, eps=1e-10):", "weight_decay=0.0, eps=1e-7):")),
    ),
    Idea(
        "nesterov-adam",
        "adam",
        0.2,
        "Nesterov momentum in AdamW looks one step ahead; few steps profit.",
        swaps((OPTIMIZER, "eps=eps, weight_decay=weight_decay)", "eps=eps, weight_decay=weight_decay, nesterov=True)")),
    ),
    Idea(
        "fast-scalars",
        "adam",
        0.2,
        "Residual scalars learn ten times faster: they hardly move in a short run.",
        swaps((OPTIMIZER, "adamw(h.scalar_lr, h.adam_beta1", "adamw(10 * h.scalar_lr, h.adam_beta1")),
    ),
    Idea(
        "z-loss",
        "loss",
        0.12,
        "A small penalty on the log of the partition function keeps logits centred (PaLM).",
        swaps(
            (
                RECIPE,
                _LOSS,
                _LOSSES + "        log_z_BxT = jax.nn.logsumexp(cap(raw_BxTxV, h), axis=-1)\n"
                "        return jnp.mean(losses_BxT + 1e-4 * jnp.square(log_z_BxT))\n",
            )
        ),
    ),
    Idea(
        "label-smoothing",
        "loss",
        0.05,
        "A share of 1 % for all tokens keeps the model from being too sure.",
        swaps(
            (
                RECIPE,
                _LOSS,
                _LOSSES + "        uniform_BxT = -jnp.mean(jax.nn.log_softmax(cap(raw_BxTxV, h)), axis=-1)\n"
                "        return jnp.mean(0.99 * losses_BxT + 0.01 * uniform_BxT)\n",
            )
        ),
    ),
    Idea(
        "late-tokens",
        "loss",
        0.08,
        "Tokens with more context behind them teach more than the first ones of a row.",
        swaps(
            (
                RECIPE,
                _LOSS,
                _LOSSES + "        T = losses_BxT.shape[1]\n"
                "        weights_T = jnp.minimum(1.0, (1.0 + jnp.arange(T)) / 16)\n"
                "        return jnp.mean(losses_BxT * weights_T)\n",
            )
        ),
    ),
    Idea(
        "batch-growth",
        "growth",
        0.35,
        "Half the batch for the first half: many steps early, quiet gradients late.",
        swaps(
            (
                RECIPE,
                _PHASES,
                "    B, T = hyperparameters.batch, hyperparameters.context\n"
                "    phases = ((0.5, max(1, B // 2), T), (1.0, B, T))\n",
            )
        ),
    ),
    Idea(
        "context-growth",
        "growth",
        0.2,
        "Short rows first: most of what is learned early is local, and costs less.",
        swaps(
            (
                RECIPE,
                _PHASES,
                "    B, T = hyperparameters.batch, hyperparameters.context\n"
                "    phases = ((0.4, 2 * B, max(1, T // 2)), (1.0, B, T))\n",
            )
        ),
    ),
)
