"""Edits of the model: activations, norms, attention, embeddings, blocks, the head."""

from __future__ import annotations

from agents.library._base import GPT, OPTIMIZER, Idea, swaps

_ACTIVATION = "jnp.square(jax.nn.relu(linear(x_BxTxD, self.inward)))"
_MLP_PARAMETERS = """        self.inward = uniform(rngs, (h.width, h.mlp_ratio * h.width), h)
        self.outward = zeros((h.mlp_ratio * h.width, h.width))
"""
_GATED_PARAMETERS = """        hidden = max(1, h.mlp_ratio * h.width * 2 // 3)
        self.inward = uniform(rngs, (h.width, hidden), h)
        self.up = uniform(rngs, (h.width, hidden), h)
        self.outward = zeros((hidden, h.width))
"""
_BRANCHES = """        x_BxTxD = x_BxTxD + self.attention(norm(x_BxTxD), tokens_BxT, h)
        return x_BxTxD + self.mlp(norm(x_BxTxD), h)
"""
_BLOCK_PARAMETERS = """        self.mlp = MLP(h, rngs)
"""
_X0 = "        x0_BxTxD = norm(lookup(self.token_embedding, tokens_BxT, h))\n"
_HEAD_PARAMETER = "        self.head = normal(rngs, (h.width, h.vocab_size), std=h.head_std)\n"
_LOGITS = "linear(norm(x_BxTxD), self.head)"
_SOFTCAP = "h.softcap * jnp.tanh(logits_BxTxV * (1 / h.softcap))"
_QUERY = "q_BxTxHxK = rotate_and_norm(q_BxTxHxK, cos_Tx1xP, sin_Tx1xP)"
_OUTPUT_PARAMETER = "        self.output = zeros((h.heads * h.head_size, h.width))\n"
_OUTPUT = "        return linear(y_BxTxHxK.reshape(B, T, h.heads * h.head_size), self.output)\n"
_KEYS = "        k_BxTxGxK = linear(x_BxTxD, self.key).reshape(B, T, h.kv_heads, h.head_size)\n"


def _activation(tag: str, promise: float, hypothesis: str, code: str) -> Idea:
    return Idea(tag, "activation", promise, hypothesis, swaps((GPT, _ACTIVATION, code)))


def _gated(tag: str, promise: float, hypothesis: str, activation: str) -> Idea:
    code = f"{activation} * linear(x_BxTxD, self.up)"
    return Idea(
        tag,
        "gated mlp",
        promise,
        hypothesis,
        swaps((GPT, _MLP_PARAMETERS, _GATED_PARAMETERS), (GPT, _ACTIVATION, code)),
    )


MODEL_IDEAS: tuple[Idea, ...] = (
    _activation(
        "gelu", 0.2, "GELU passes a gradient where ReLU squared has none.", "jax.nn.gelu(linear(x_BxTxD, self.inward))"
    ),
    _activation(
        "silu-squared",
        0.2,
        "SiLU squared keeps the quadratic growth and is smooth at zero.",
        "jnp.square(jax.nn.silu(linear(x_BxTxD, self.inward)))",
    ),
    _activation(
        "leaky-relu-squared",
        0.3,
        "A leak of one half keeps every hidden unit learning; modded-nanogpt went that way.",
        "jnp.square(jax.nn.leaky_relu(linear(x_BxTxD, self.inward), 0.5))",
    ),
    _gated(
        "swiglu",
        0.3,
        "SwiGLU's product of two projections fits more per parameter (arXiv 2002.05202).",
        "jax.nn.silu(linear(x_BxTxD, self.inward))",
    ),
    _gated(
        "reglu-squared",
        0.25,
        "A gate on top of ReLU squared: sparse and multiplicative.",
        "jnp.square(jax.nn.relu(linear(x_BxTxD, self.inward)))",
    ),
    Idea(
        "norm-gains",
        "norm",
        0.2,
        "A learned gain per channel lets each branch choose what it reads.",
        swaps(
            (
                GPT,
                _BLOCK_PARAMETERS,
                _BLOCK_PARAMETERS
                + "        self.attention_gain, self.mlp_gain = (nnx.Param(jnp.ones(h.width)) for _ in range(2))\n",
            ),
            (
                GPT,
                _BRANCHES,
                "        gains = [gain[...].astype(h.dtype) for gain in (self.attention_gain, self.mlp_gain)]\n"
                "        x_BxTxD = x_BxTxD + self.attention(norm(x_BxTxD) * gains[0], tokens_BxT, h)\n"
                "        return x_BxTxD + self.mlp(norm(x_BxTxD) * gains[1], h)\n",
            ),
        ),
    ),
    Idea(
        "sandwich-norm",
        "norm",
        0.12,
        "Norming each branch's output too keeps the stream's growth even.",
        swaps(
            (
                GPT,
                _BRANCHES,
                "        x_BxTxD = x_BxTxD + norm(self.attention(norm(x_BxTxD), tokens_BxT, h))\n"
                "        return x_BxTxD + norm(self.mlp(norm(x_BxTxD), h))\n",
            )
        ),
    ),
    Idea(
        "raw-embedding",
        "norm",
        0.1,
        "Without the norm, the embedding's length can say how sure a token is.",
        swaps((GPT, _X0, "        x0_BxTxD = lookup(self.token_embedding, tokens_BxT, h)\n")),
    ),
    Idea(
        "layer-norm-mean",
        "norm",
        0.08,
        "Taking the mean out frees one direction of the stream from carrying a bias.",
        swaps(
            (
                GPT,
                "    x_f32 = x.astype(jnp.float32)\n    return (x_f32",
                "    x_f32 = x.astype(jnp.float32)\n"
                "    x_f32 = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)\n"
                "    return (x_f32",
            )
        ),
    ),
    Idea(
        "parallel-block",
        "block",
        0.15,
        "Attention and MLP read the same input: one depth, fewer dependent steps.",
        swaps(
            (
                GPT,
                _BRANCHES,
                "        y_BxTxD = norm(x_BxTxD)\n"
                "        return x_BxTxD + self.attention(y_BxTxD, tokens_BxT, h) + self.mlp(y_BxTxD, h)\n",
            )
        ),
    ),
    Idea(
        "mlp-first",
        "block",
        0.1,
        "The first block mixes each token's own features before it looks at others.",
        swaps(
            (
                GPT,
                _BRANCHES,
                "        x_BxTxD = x_BxTxD + self.mlp(norm(x_BxTxD), h)\n"
                "        return x_BxTxD + self.attention(norm(x_BxTxD), tokens_BxT, h)\n",
            )
        ),
    ),
    Idea(
        "x0-into-head",
        "block",
        0.2,
        "The head sees the token itself next to what the blocks made of it.",
        swaps(
            (GPT, _HEAD_PARAMETER, _HEAD_PARAMETER + "        self.head_skip = nnx.Param(jnp.zeros(()))\n"),
            (GPT, _LOGITS, "linear(norm(x_BxTxD + (self.head_skip[...] * x0_BxTxD).astype(h.dtype)), self.head)"),
        ),
    ),
    Idea(
        "x0-per-channel",
        "block",
        0.2,
        "Each channel of the stream takes its own share of the first embedding.",
        swaps(
            (
                GPT,
                "self.x0_lambda = nnx.Param(jnp.full((), h.x0_init, jnp.float32))",
                "self.x0_lambda = nnx.Param(jnp.full((h.width,), h.x0_init, jnp.float32))",
            )
        ),
    ),
    Idea(
        "query-scale",
        "attention",
        0.25,
        "Normed queries and keys make soft attention; a factor of 1.4 sharpens it.",
        swaps((GPT, _QUERY, _QUERY.replace("= ", "= 1.4 * "))),
    ),
    Idea(
        "learned-query-scale",
        "attention",
        0.25,
        "Each head learns how sharply it attends.",
        swaps(
            (
                GPT,
                _OUTPUT_PARAMETER,
                _OUTPUT_PARAMETER + "        self.sharpness = nnx.Param(jnp.ones((h.heads, 1)))\n",
            ),
            (GPT, _QUERY, _QUERY + " * self.sharpness[...].astype(h.dtype)"),
            (
                OPTIMIZER,
                '        "resid_lambda": adamw(',
                '        "sharpness": adamw(0.02, h.adam_beta1, eps=SCALAR_EPS),\n        "resid_lambda": adamw(',
            ),
        ),
    ),
    Idea(
        "attention-output-gate",
        "attention",
        0.3,
        "A head that found nothing can stay silent (arXiv 2505.06708).",
        swaps(
            (GPT, _OUTPUT_PARAMETER, _OUTPUT_PARAMETER + "        self.output_gate = zeros((h.width, h.heads))\n"),
            (
                GPT,
                _OUTPUT,
                "        y_BxTxHxK = 2 * jax.nn.sigmoid(linear(x_BxTxD, self.output_gate))[..., None] * y_BxTxHxK\n"
                + _OUTPUT,
            ),
        ),
    ),
    Idea(
        "half-rotary",
        "position",
        0.25,
        "Half of the rotary pairs stay still, so that content matches at any distance.",
        swaps(
            (
                GPT,
                "    angle_Tx1xP = ",
                "    frequency_P = jnp.where(jnp.arange(P) < (P + 1) // 2, frequency_P, 0.0)\n    angle_Tx1xP = ",
            )
        ),
    ),
    Idea(
        "key-shift",
        "token shift",
        0.4,
        "Half of each key's channels come from the token before: one layer can then do what induction needs two for.",
        swaps(
            (
                GPT,
                _KEYS,
                _KEYS + "        previous_BxTxGxK = jnp.pad(k_BxTxGxK, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]\n"
                "        k_BxTxGxK = jnp.where(jnp.arange(h.head_size) % 2 == 0, k_BxTxGxK, previous_BxTxGxK)\n",
            )
        ),
    ),
    Idea(
        "token-shift",
        "token shift",
        0.35,
        "A learned share of the previous embedding: bigrams without attention.",
        swaps(
            (GPT, _HEAD_PARAMETER, _HEAD_PARAMETER + "        self.shift = nnx.Param(jnp.full((h.width,), 0.1))\n"),
            (
                GPT,
                _X0,
                _X0 + "        previous_BxTxD = jnp.pad(x0_BxTxD, ((0, 0), (1, 0), (0, 0)))[:, :-1]\n"
                "        x0_BxTxD = norm(x0_BxTxD + self.shift[...].astype(h.dtype) * previous_BxTxD)\n",
            ),
            (
                OPTIMIZER,
                '        "resid_lambda": adamw(',
                '        "shift": adamw(0.02, h.adam_beta1, eps=SCALAR_EPS),\n        "resid_lambda": adamw(',
            ),
        ),
    ),
    Idea(
        "mlp-shift",
        "token shift",
        0.25,
        "Every second channel that the MLP reads comes from the token before: it sees pairs of tokens.",
        swaps(
            (
                GPT,
                _ACTIVATION,
                _ACTIVATION.replace("x_BxTxD", "shifted_BxTxD"),
            ),
            (
                GPT,
                "        hidden_BxTxF = ",
                "        previous_BxTxD = jnp.pad(x_BxTxD, ((0, 0), (1, 0), (0, 0)))[:, :-1]\n"
                "        shifted_BxTxD = jnp.where(jnp.arange(h.width) % 2 == 0, x_BxTxD, previous_BxTxD)\n"
                "        hidden_BxTxF = ",
            ),
        ),
    ),
    Idea(
        "bigram-embedding",
        "token shift",
        0.4,
        "A hashed table for pairs of tokens gives the model bigrams from step one.",
        swaps(
            (
                GPT,
                _HEAD_PARAMETER,
                _HEAD_PARAMETER + "        self.bigram_embedding = zeros((4 * h.vocab_size, h.width))\n",
            ),
            (
                GPT,
                _X0,
                "        previous_BxT = jnp.pad(tokens_BxT, ((0, 0), (1, 0)))[:, :-1]\n"
                "        pairs_BxT = (previous_BxT * 36313 + tokens_BxT * 27191) % (4 * h.vocab_size)\n"
                "        bigrams_BxTxD = lookup(self.bigram_embedding, pairs_BxT, h)\n"
                "        x0_BxTxD = norm(lookup(self.token_embedding, tokens_BxT, h) + bigrams_BxTxD)\n",
            ),
            (
                OPTIMIZER,
                '        "head": adamw(',
                '        "bigram_embedding": adamw(width_scale * h.embedding_lr / 4, h.adam_beta1),\n'
                '        "head": adamw(',
            ),
        ),
    ),
    Idea(
        "value-embeddings-everywhere",
        "value embedding",
        0.25,
        "Each layer gets its own table, not each second one.",
        swaps((GPT, "h.value_embeddings and (h.depth - 1 - layer) % 2 == 0", "h.value_embeddings")),
    ),
    Idea(
        "wide-value-gate",
        "value embedding",
        0.15,
        "The gate reads the whole stream instead of 32 of its channels.",
        swaps(
            (GPT, "zeros((min(32, h.width), h.kv_heads))", "zeros((h.width, h.kv_heads))"),
            (GPT, "linear(x_BxTxD[:, :, :32], self.gate)", "linear(x_BxTxD, self.gate)"),
        ),
    ),
    Idea(
        "ungated-value-embedding",
        "value embedding",
        0.1,
        "Simpler: the table itself can learn how much to add.",
        swaps(
            (GPT, "            self.gate = zeros((min(32, h.width), h.kv_heads))\n", ""),
            (GPT, "            gate_BxTxG = 2 * jax.nn.sigmoid(linear(x_BxTxD[:, :, :32], self.gate))\n", ""),
            (GPT, "v_BxTxGxK + gate_BxTxG[..., None] * embedding_BxTxGxK", "v_BxTxGxK + embedding_BxTxGxK"),
        ),
    ),
    Idea(
        "zero-value-embedding",
        "init",
        0.2,
        "Value embeddings start at zero: no noise in v before they know anything.",
        swaps(
            (
                GPT,
                "self.value_embedding = uniform(rngs, (h.vocab_size, h.kv_heads * h.head_size), h)",
                "self.value_embedding = zeros((h.vocab_size, h.kv_heads * h.head_size))",
            )
        ),
    ),
    Idea(
        "small-output-init",
        "init",
        0.15,
        "Output projections that are not zero pass gradients to the block at once.",
        swaps(
            (
                GPT,
                "        self.outward = zeros((h.mlp_ratio * h.width, h.width))\n",
                "        self.outward = normal(rngs, (h.mlp_ratio * h.width, h.width), std=0.02)\n",
            ),
            (
                GPT,
                _OUTPUT_PARAMETER,
                "        self.output = normal(rngs, (h.heads * h.head_size, h.width), std=0.02)\n",
            ),
        ),
    ),
    Idea(
        "tied-head",
        "head",
        0.1,
        "One table for reading and writing: half the parameters see twice the gradients.",
        swaps(
            (GPT, _HEAD_PARAMETER, ""),
            (GPT, _LOGITS, "(norm(x_BxTxD) @ self.token_embedding[...].T.astype(h.dtype) * h.width**-0.5)"),
        ),
    ),
    Idea(
        "no-softcap",
        "head",
        0.15,
        "Simpler: logits of a short run stay small, so the cap only dampens them.",
        swaps((GPT, f"    return {_SOFTCAP}\n", "    return logits_BxTxV\n")),
    ),
    Idea(
        "algebraic-softcap",
        "head",
        0.1,
        "A cap that bends later than tanh leaves medium logits alone.",
        swaps((GPT, _SOFTCAP, "logits_BxTxV * jax.lax.rsqrt(1 + jnp.square(logits_BxTxV / h.softcap))")),
    ),
    Idea(
        "logit-scale",
        "head",
        0.2,
        "Doubling the logits doubles what each step of the head can say.",
        swaps((GPT, _LOGITS, f"(2 * {_LOGITS})")),
    ),
    Idea(
        "head-bias",
        "head",
        0.2,
        "A bias holds the unigram frequencies, which the head then need not learn.",
        swaps(
            (GPT, _HEAD_PARAMETER, _HEAD_PARAMETER + "        self.head_bias = zeros((h.vocab_size,))\n"),
            (GPT, _LOGITS, f"{_LOGITS} + self.head_bias[...]"),
            (
                OPTIMIZER,
                '        "head": adamw(',
                '        "head_bias": adamw(h.head_lr, h.adam_beta1),\n        "head": adamw(',
            ),
        ),
    ),
)
