"""The default subject once more, in plain PyTorch: what `benchmarks/throughput.py` races and checks our step against.

The same model, initial values, optimiser and schedules as models/, written as a PyTorch user would: fused attention
(`scaled_dot_product_attention` with a mask), one Muon group per shape, `torch.compile` left to the caller.
Shapes stand in names as in models/gpt.py. `h` holds the hyperparameters of models/recipe.py by name, and the constants of
models/optimizer.py: this file imports no JAX, so that starting it costs what starting PyTorch costs.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class GPT(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.h = h
        self.token_embedding = nn.Parameter(torch.randn(h.vocab_size, h.width) * h.embedding_std)
        self.blocks = nn.ModuleList(Block(h, layer) for layer in range(h.depth))
        self.head = nn.Parameter(torch.randn(h.width, h.vocab_size) * h.head_std)
        frequency_K = h.rope_base ** (-torch.arange(h.head_size // 2) / (h.head_size // 2))
        angle_TxK = torch.arange(h.context)[:, None] * frequency_K
        self.register_buffer("cos_TxK", angle_TxK.cos(), persistent=False)
        self.register_buffer("sin_TxK", angle_TxK.sin(), persistent=False)

    def forward(self, tokens_BxT):
        x0_BxTxD = norm(F.embedding(tokens_BxT, self.token_embedding))
        x_BxTxD = x0_BxTxD
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD, x0_BxTxD, tokens_BxT, self.cos_TxK, self.sin_TxK)
        logits_BxTxV = (norm(x_BxTxD) @ self.head).float()
        return self.h.softcap * torch.tanh(logits_BxTxV / self.h.softcap)

    def loss(self, tokens_BxT1):
        logits_BxTxV = self(tokens_BxT1[:, :-1])
        return F.cross_entropy(logits_BxTxV.flatten(0, 1), tokens_BxT1[:, 1:].flatten())


class Block(nn.Module):
    def __init__(self, h, layer):
        super().__init__()
        self.resid_lambda = nn.Parameter(torch.tensor(h.resid_init))
        self.x0_lambda = nn.Parameter(torch.tensor(h.x0_init))
        self.attention = Attention(h, layer)
        self.mlp = MLP(h)

    def forward(self, x_BxTxD, x0_BxTxD, tokens_BxT, cos_TxK, sin_TxK):
        x_BxTxD = self.resid_lambda * x_BxTxD + self.x0_lambda * x0_BxTxD
        x_BxTxD = x_BxTxD + self.attention(norm(x_BxTxD), tokens_BxT, cos_TxK, sin_TxK)
        return x_BxTxD + self.mlp(norm(x_BxTxD))


class Attention(nn.Module):
    def __init__(self, h, layer):
        super().__init__()
        self.h = h
        self.query = uniform(h, h.width, h.heads * h.head_size)
        self.key = uniform(h, h.width, h.kv_heads * h.head_size)
        self.value = uniform(h, h.width, h.kv_heads * h.head_size)
        self.output = nn.Parameter(torch.zeros(h.heads * h.head_size, h.width))
        self.has_value_embedding = h.value_embeddings and (h.depth - 1 - layer) % 2 == 0
        if self.has_value_embedding:
            self.value_embedding = uniform(h, h.vocab_size, h.kv_heads * h.head_size)
            self.gate = nn.Parameter(torch.zeros(min(32, h.width), h.kv_heads))
        letter = h.window_pattern[layer % len(h.window_pattern)]
        window = h.context if letter == "L" or layer == h.depth - 1 else max(1, round(h.short_window * h.context))
        time_T = torch.arange(h.context)
        distance_TxT = time_T[:, None] - time_T[None, :]
        # Where a layer sees everything, "causal" is a faster path of the fused kernel than the same mask.
        self.whole_context = window >= h.context
        self.register_buffer("visible_TxT", (distance_TxT >= 0) & (distance_TxT < window), persistent=False)

    def forward(self, x_BxTxD, tokens_BxT, cos_TxK, sin_TxK):
        h, (B, T, _) = self.h, x_BxTxD.shape
        q_BxTxHxK = (x_BxTxD @ self.query).view(B, T, h.heads, h.head_size)
        k_BxTxGxK = (x_BxTxD @ self.key).view(B, T, h.kv_heads, h.head_size)
        v_BxTxGxK = (x_BxTxD @ self.value).view(B, T, h.kv_heads, h.head_size)
        if self.has_value_embedding:
            gate_BxTxG = 2 * torch.sigmoid(x_BxTxD[:, :, :32] @ self.gate)
            embedding_BxTxGxK = F.embedding(tokens_BxT, self.value_embedding).view(v_BxTxGxK.shape)
            v_BxTxGxK = v_BxTxGxK + gate_BxTxG[..., None] * embedding_BxTxGxK
        q_BxTxHxK = norm(rotary(q_BxTxHxK, cos_TxK, sin_TxK))
        k_BxTxGxK = norm(rotary(k_BxTxGxK, cos_TxK, sin_TxK))
        q_BxHxTxK, k_BxGxTxK, v_BxGxTxK = (x.transpose(1, 2) for x in (q_BxTxHxK, k_BxTxGxK, v_BxTxGxK))
        mask = {"is_causal": True} if self.whole_context else {"attn_mask": self.visible_TxT}
        y_BxHxTxK = F.scaled_dot_product_attention(
            q_BxHxTxK, k_BxGxTxK, v_BxGxTxK, enable_gqa=h.heads != h.kv_heads, **mask
        )
        return y_BxHxTxK.transpose(1, 2).reshape(B, T, -1) @ self.output


class MLP(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.inward = uniform(h, h.width, h.mlp_ratio * h.width)
        self.outward = nn.Parameter(torch.zeros(h.mlp_ratio * h.width, h.width))

    def forward(self, x_BxTxD):
        return F.relu(x_BxTxD @ self.inward).square() @ self.outward


def norm(x):
    return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


def rotary(x_BxTxHxK, cos_TxK, sin_TxK):
    left, right = x_BxTxHxK.chunk(2, dim=-1)
    cos, sin = cos_TxK[:, None, :], sin_TxK[:, None, :]
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)


def uniform(h, rows, columns):
    bound = h.matrix_init * (3 / h.width) ** 0.5
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound))


class Optimizer:
    """AdamW for embeddings, head and scalars; Muon for the matrices of the blocks, one group per shape."""

    def __init__(self, model, h):
        self.h = h
        named = dict(model.named_parameters())
        scale = (h.width / 768) ** -0.5
        adam = {
            "token_embedding": (scale * h.embedding_lr, h.adam_beta1, h.embedding_decay, 1e-10),
            "value_embedding": (scale * h.embedding_lr, h.adam_beta1, h.value_embedding_decay, 1e-10),
            "head": (scale * h.head_lr, h.adam_beta1, h.head_decay, 1e-10),
            "resid_lambda": (h.scalar_lr, h.adam_beta1, 0.0, h.scalar_eps),
            "x0_lambda": (h.x0_lr, h.x0_beta1, 0.0, h.scalar_eps),
        }
        groups = []
        for kind, (lr, beta1, decay, eps) in adam.items():
            params = [p for name, p in named.items() if name.rsplit(".", 1)[-1] == kind]
            if params:
                betas = (beta1, h.adam_beta2)
                group = {"params": params, "lr": lr, "base_lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
                groups.append(group)
        self.adamw = torch.optim.AdamW(groups, fused=True)
        by_shape = {}
        for name, parameter in named.items():
            if name.rsplit(".", 1)[-1] not in adam:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.muon = []
        for shape, params in by_shape.items():
            kept = 1 if shape[1] >= shape[0] else 0
            momentum = torch.zeros(len(params), *shape)
            second = torch.zeros(len(params), 1, shape[1]) if kept == 1 else torch.zeros(len(params), shape[0], 1)
            self.muon.append((params, momentum, second, 1 if kept == 1 else 2))

    def step(self, progress):
        h = self.h
        warmup = progress / h.warmup if progress < h.warmup else 1.0
        decay = (1 - progress) / h.warmdown if progress > 1 - h.warmdown else 1.0
        lr_scale = warmup * (h.final_lr_fraction + (1 - h.final_lr_fraction) * decay)
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adamw.step()
        momentum = h.momentum_start + (h.momentum_end - h.momentum_start) * min(1.0, progress / h.momentum_warmup)
        # As tensors: a number that changes every step would make torch.compile compile every step.
        numbers = [torch.tensor(x) for x in (lr_scale * h.matrix_lr, momentum, h.weight_decay * (1 - progress))]
        for params, average, second, _ in self.muon:
            muon(params, [p.grad for p in params], average, second, *numbers, h.normuon_beta2, h.polar_express)

    def zero_grad(self):
        self.adamw.zero_grad()
        for params, *_ in self.muon:
            for parameter in params:
                parameter.grad = None


@torch.no_grad()
def muon(params, grads, average_NxIxO, second_moment, lr, momentum, weight_decay, beta2, coefficients):
    """One Muon step for matrices of one shape."""
    gradient_NxIxO, p_NxIxO = torch.stack(grads), torch.stack(params)
    average_NxIxO.lerp_(gradient_NxIxO, 1 - momentum)
    u_NxIxO = polar_express(gradient_NxIxO.lerp(average_NxIxO, momentum), coefficients)
    shorter = 1 if u_NxIxO.shape[2] >= u_NxIxO.shape[1] else 2
    second_moment.lerp_(u_NxIxO.square().mean(shorter, keepdim=True), 1 - beta2)
    evened = u_NxIxO * second_moment.clamp_min(1e-10).rsqrt()
    size, new_size = u_NxIxO.norm(dim=(1, 2), keepdim=True), evened.norm(dim=(1, 2), keepdim=True)
    u_NxIxO = evened * (size / new_size.clamp_min(1e-10))
    u_NxIxO = u_NxIxO + weight_decay * p_NxIxO * (u_NxIxO * p_NxIxO >= 0)
    u_NxIxO = u_NxIxO * max(1, u_NxIxO.shape[2] / u_NxIxO.shape[1]) ** 0.5
    for parameter, new_IxO in zip(params, (p_NxIxO - lr * u_NxIxO).unbind(), strict=True):
        parameter.copy_(new_IxO)


def polar_express(x_NxIxO, coefficients):
    if x_NxIxO.shape[1] > x_NxIxO.shape[2]:
        return polar_express(x_NxIxO.mT, coefficients).mT
    x_NxIxO = x_NxIxO / (1.02 * x_NxIxO.norm(dim=(1, 2), keepdim=True) + 1e-6)
    for a, b, c in coefficients:
        gram_NxIxI = x_NxIxO @ x_NxIxO.mT
        x_NxIxO = a * x_NxIxO + (b * gram_NxIxI + c * gram_NxIxI @ gram_NxIxI) @ x_NxIxO
    return x_NxIxO


class Trainer:
    """`step(tokens_BxT1, progress)` trains one step and returns the loss. `compiled` puts it through torch.compile.

    bfloat16 runs the model under autocast, as PyTorch users do; parameters and optimiser stay float32.
    rows_of_a_pass: of the batch, in one forward and backward pass; all by default.
    """

    def __init__(self, h, *, compiled, bfloat16=False, rows_of_a_pass=None, weights=None):
        torch.manual_seed(0)
        self.model, self.bfloat16, self.rows_of_a_pass = GPT(h), bfloat16, rows_of_a_pass or h.batch
        if weights is not None:
            self._load(weights)
        self.optimizer = Optimizer(self.model, h)
        self.loss = torch.compile(self.model.loss) if compiled else self.model.loss
        if compiled:
            global muon
            muon = torch.compile(muon)

    def _load(self, weights):
        """weights: "blocks.0.attention.query" -> array, the names of models/gpt.py."""
        named = dict(self.model.named_parameters())
        if named.keys() != weights.keys():
            raise ValueError(f"weights do not match: {sorted(named.keys() ^ weights.keys())}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(torch.tensor(weights[name]))

    def step(self, tokens_BxT1, progress):
        self.optimizer.zero_grad()
        value, tokens_BxT1 = 0.0, torch.as_tensor(tokens_BxT1, dtype=torch.int64)
        for tokens_MxT1 in tokens_BxT1.split(self.rows_of_a_pass):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
                loss = self.loss(tokens_MxT1) * (len(tokens_MxT1) / len(tokens_BxT1))
            loss.backward()
            value += loss.item()
        self.optimizer.step(progress)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value}")
        return value
