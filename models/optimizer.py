"""The optimiser: Muon for the matrices in the blocks, AdamW for the rest, and the schedules.

Schedules are functions of `progress`, the spent fraction of the budget in [0, 1], never of a step count: the same
recipe then fits a budget in seconds, tokens or FLOPs, a slow and a fast machine, a small and a large batch.
"""

from collections import defaultdict

import jax
import jax.numpy as jnp
import optax

# (a, b, c) of x -> a x + b x^3 + c x^5, one step each: Polar Express, https://arxiv.org/abs/2505.16932
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Output projections start at zero, so the first output does not depend on the scale of the residual stream: the first
# gradients of the residual scalars are rounding noise (1e-10; from the second step on they are above 1e-4). The eps of
# the other groups would turn that noise into steps of size lr, different on every machine and number of threads.
SCALAR_EPS = 1e-5


def learning_rate_scale(progress, h):
    """Linear warm-up, a plateau, then linear decay to `final_lr_fraction` over the last `warmdown` of the run."""
    warmup = jnp.where(progress < h.warmup, progress / h.warmup, 1.0)
    decay = jnp.where(progress > 1 - h.warmdown, (1 - progress) / h.warmdown, 1.0)
    return warmup * (h.final_lr_fraction + (1 - h.final_lr_fraction) * decay)


def momentum_at(progress, h):
    """Muon's momentum rises linearly; low at first, when gradients soon go stale."""
    return h.momentum_start + (h.momentum_end - h.momentum_start) * jnp.minimum(1.0, progress / h.momentum_warmup)


def weight_decay_at(progress, h):
    """Of the matrices in the blocks: falls linearly to 0."""
    return h.weight_decay * (1 - progress)


def optimizer(h, progress):
    """The whole optimiser at one moment of the run, as an optax transformation of the parameters' tree.

    A parameter's own name is that of its group, if there is one. Other matrices are "matrix", all else `resid_lambda`.
    """
    scale = learning_rate_scale(progress, h)
    width_scale = (h.width / 768) ** -0.5  # learning rates were tuned at width 768

    def adamw(learning_rate, beta1, weight_decay=0.0, eps=1e-10):
        return optax.adamw(scale * learning_rate, b1=beta1, b2=h.adam_beta2, eps=eps, weight_decay=weight_decay)

    groups = {
        "matrix": muon(scale * h.matrix_lr, momentum_at(progress, h), weight_decay_at(progress, h), h),
        "token_embedding": adamw(width_scale * h.embedding_lr, h.adam_beta1, h.embedding_decay),
        "value_embedding": adamw(width_scale * h.embedding_lr, h.adam_beta1, h.value_embedding_decay),
        "head": adamw(width_scale * h.head_lr, h.adam_beta1, h.head_decay),
        "resid_lambda": adamw(h.scalar_lr, h.adam_beta1, eps=SCALAR_EPS),
        "x0_lambda": adamw(h.x0_lr, h.x0_beta1, eps=SCALAR_EPS),
    }

    def group_of(path, parameter):
        name = path[-1].key
        return name if name in groups else "matrix" if parameter.ndim == 2 else "resid_lambda"

    return optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(group_of, params))


def muon(learning_rate, momentum, weight_decay, h):
    """Muon (https://kellerjordan.github.io/posts/muon) with NorMuon and cautious weight decay, for IxO matrices."""
    return optax.chain(
        nesterov(momentum),
        optax.stateless(lambda updates, _: orthogonalize(updates, h.dtype)),
        normuon(h.normuon_beta2),
        cautious_weight_decay(weight_decay),
        optax.stateless_with_tree_map(lambda u_IxO, _: u_IxO * max(1, u_IxO.shape[1] / u_IxO.shape[0]) ** 0.5),
        optax.scale_by_learning_rate(learning_rate),
    )


def nesterov(momentum):
    """Gradient g -> mix of g with its moving average, which has already seen g."""

    def update(gradients, average, params=None):
        average = mix(gradients, average, momentum)
        return mix(gradients, average, momentum), average

    return optax.GradientTransformation(optax.tree.zeros_like, update)


def orthogonalize(update, dtype):
    """Every matrix IxO of the tree with its singular values brought near 1, in float32; computed in `dtype`.

    The N matrices of one shape are stacked, NxIxO: few large products.
    """
    matrices, tree = jax.tree.flatten(update)
    places = defaultdict(list)
    for place, matrix in enumerate(matrices):
        places[matrix.shape].append(place)
    for same_shape in places.values():
        stack_NxIxO = jnp.stack([matrices[place] for place in same_shape]).astype(dtype)
        for place, matrix in zip(same_shape, polar_express(stack_NxIxO), strict=True):
            matrices[place] = matrix.astype(jnp.float32)
    return tree.unflatten(matrices)


def polar_express(x_NxIxO):
    """The nearest (semi-)orthogonal matrices, roughly. The Gram matrix is taken on the smaller side."""
    if x_NxIxO.shape[1] > x_NxIxO.shape[2]:
        return polar_express(x_NxIxO.mT).mT
    x_NxIxO = x_NxIxO / (1.02 * jnp.linalg.norm(x_NxIxO, axis=(1, 2), keepdims=True) + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram_NxIxI = x_NxIxO @ x_NxIxO.mT
        x_NxIxO = a * x_NxIxO + (b * gram_NxIxI + c * gram_NxIxI @ gram_NxIxI) @ x_NxIxO
    return x_NxIxO


def normuon(beta2):
    """Even out the rows (or columns, the longer side) of each update by their running size, keeping its total norm.

    NorMuon, https://arxiv.org/abs/2510.05491.
    """

    def mean_square(u_IxO):
        shorter = 0 if u_IxO.shape[1] >= u_IxO.shape[0] else 1
        return jnp.mean(jnp.square(u_IxO), axis=shorter, keepdims=True)

    def rescale(u_IxO, second_moment):
        evened = u_IxO * jax.lax.rsqrt(jnp.maximum(second_moment, 1e-10))
        return evened * (jnp.linalg.norm(u_IxO) / jnp.maximum(jnp.linalg.norm(evened), 1e-10))

    def init(params):
        return jax.tree.map(lambda p_IxO: jnp.zeros_like(mean_square(p_IxO)), params)

    def update(updates, second_moments, params=None):
        second_moments = mix(jax.tree.map(mean_square, updates), second_moments, beta2)
        return jax.tree.map(rescale, updates, second_moments), second_moments

    return optax.GradientTransformation(init, update)


def cautious_weight_decay(weight_decay):
    """Decay a weight only where the update already shrinks it, https://arxiv.org/abs/2510.12402."""

    def decay(u_IxO, p_IxO):
        return u_IxO + weight_decay * p_IxO * (u_IxO * p_IxO >= 0)

    return optax.stateless_with_tree_map(decay)


def mix(new, old, old_share):
    """One step of a moving average, leaf by leaf."""
    return jax.tree.map(lambda n, o: old_share * o + (1 - old_share) * n, new, old)
