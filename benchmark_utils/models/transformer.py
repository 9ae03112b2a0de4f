"""A decoder-only transformer with switches, for all models of ``named.py``.

Every layer computes x + attention(norm(x)), then x + mlp(norm(x)), without
dropout. Attention looks back to the start of a row, across the documents in
it. As ``gpt2`` it follows llm.c
(https://github.com/karpathy/llm.c, ``train_gpt2.py``) and Radford et al.,
"Language Models are Unsupervised Multitask Learners" (2019).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmark_utils.hardware.device import product_dtype
from benchmark_utils.models import rotary
from benchmark_utils.models.attention import causal_attention
from benchmark_utils.models.cross_entropy import linear_cross_entropy, soft_cap
from benchmark_utils.models.initialisation import initialise
from benchmark_utils.models.layers import Linear, RMSNorm


def make_norm(a):
    """The norm of an ``Architecture``, on [..., n_embd]."""
    if a.norm == "rms_norm":
        return RMSNorm(a.n_embd, a.norm_eps, a.norm_gain)
    return nn.LayerNorm(a.n_embd, a.norm_eps, a.norm_gain, a.bias)


class Block(nn.Module):
    """One layer of an ``Architecture``: attention, then an MLP four times as
    wide."""

    def __init__(self, a):
        super().__init__()
        self.n_head = a.n_head
        self.attention_scale = (
            None if a.attention_scale == "auto" else a.attention_scale
        )
        self.damping = (
            1 / math.sqrt(2 * a.n_layer) if a.damped_attention else 1
        )
        self.fused_qkv = a.fused_qkv
        self.attn_norm = make_norm(a)
        if a.fused_qkv:
            self.attn_qkv = Linear(a.n_embd, 3 * a.n_embd, a.bias)
        else:
            self.attn_q = Linear(a.n_embd, a.n_embd, a.bias)
            self.attn_k = Linear(a.n_embd, a.n_embd, a.bias)
            self.attn_v = Linear(a.n_embd, a.n_embd, a.bias)
        self.qk_norm = (
            RMSNorm(a.head_dim, a.norm_eps, False) if a.qk_norm
            else nn.Identity()
        )
        self.attn_proj = Linear(a.n_embd, a.n_embd, a.bias)
        self.mlp_norm = make_norm(a)
        self.mlp_fc = Linear(a.n_embd, 4 * a.n_embd, a.bias, a.activation)
        self.mlp_proj = Linear(4 * a.n_embd, a.n_embd, a.bias)

    def forward(self, x, rotation):  # x: [batch, sequence, n_embd]
        heads = self.attention(self.attn_norm(x), rotation)
        x = x.add(self.attn_proj(heads), alpha=self.damping)
        return x + self.mlp_proj(self.mlp_fc(self.mlp_norm(x)))

    def attention(self, x, rotation):  # [batch, sequence, n_embd] -> the same
        if self.fused_qkv:
            # [3, batch, head, sequence, head width]
            q, k, v = self.attn_qkv(x).unflatten(
                -1, (3, self.n_head, -1)
            ).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                for layer in (self.attn_q, self.attn_k, self.attn_v)
            )
        q, k = self.qk_norm(q), self.qk_norm(k)
        if rotation is not None:
            q, k = rotary.rotate(q, *rotation), rotary.rotate(k, *rotation)
        heads = causal_attention(q, k, v, self.attention_scale)
        return heads.transpose(1, 2).flatten(-2)


class HeadLoss(nn.Module):
    """The mean cross-entropy of the head's logits; its tensors are the
    model's. A module, so that it can be compiled by itself."""

    def forward(self, x, targets, *head):
        # x: [batch, sequence, n_embd]; targets: [batch, sequence]
        weight, *rest = head
        return linear_cross_entropy(
            x.flatten(0, 1), weight, targets.flatten(), *rest
        )


class Transformer(nn.Module):
    """The model of an architecture, initialised from one seed.

    Parameters
    ----------
    architecture : Architecture
    vocab_size : int
        Number of token ids of the data; the architecture's
        ``vocab_multiple`` may add some.
    seed : int
        Seed of the initialisation: the same seed gives the same weights on
        every device, whatever else drew random numbers.
    tokens_per_step : int or None
        Number of tokens over which the gradient is summed if the
        architecture's ``loss_gradient`` is "sum". It is that of a whole step,
        because the gradients of micro-batches and ranks are averaged. None is
        that of each call of ``forward``.
    """

    def __init__(self, architecture, vocab_size, seed=0,
                 tokens_per_step=None):
        super().__init__()
        self.architecture = a = architecture
        self.tokens_per_step = tokens_per_step
        vocab_size += -vocab_size % a.vocab_multiple
        # The modules have no storage at first: torch's own initialisation
        # would be thrown away, and draws from the global generator.
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(vocab_size, a.n_embd)
            self.position_embedding = nn.Embedding(
                a.context_length, a.n_embd
            ) if a.positions == "learned" else None
            self.embedding_norm = (
                make_norm(a) if a.embedding_norm else nn.Identity()
            )
            self.blocks = nn.ModuleList(Block(a) for _ in range(a.n_layer))
            self.final_norm = make_norm(a)
            self.loss = HeadLoss()
            self.head = None if a.tied_head else nn.Linear(
                a.n_embd, vocab_size, bias=False
            )
            self.head_bias = nn.Parameter(
                torch.empty(vocab_size)
            ) if a.head_bias else None
        self.to_empty(device="cpu")
        with torch.no_grad():
            initialise(
                self, a.initialisation, torch.Generator().manual_seed(seed)
            )
        self.token_embedding.to(getattr(torch, a.embedding_dtype))
        # These tables are not part of the state: they follow from the
        # architecture.
        cos = sin = None
        if a.positions != "learned":
            frequencies = getattr(rotary, a.positions)(a.head_dim)
            cos, sin = rotary.rotation_table(frequencies, a.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def head_weight(self):
        """The tensor [vocabulary, n_embd] whose product gives the logits."""
        return (self.token_embedding if self.head is None else
                self.head).weight

    def forward(self, inputs, targets=None):
        """Logits, or the mean cross-entropy if targets are given.

        Parameters
        ----------
        inputs, targets : int64 tensors, shape [batch, sequence]

        Returns
        -------
        logits : tensor [batch, sequence, vocabulary], or
        loss : float32 scalar tensor, nats per token
            Its gradient is what the architecture's ``loss_gradient`` says.
        """
        a, length, rotation = self.architecture, inputs.shape[1], None
        x = self.token_embedding(inputs)
        # An embedding in bfloat16 makes a residual stream in bfloat16 only
        # where matrix products are computed in bfloat16 too.
        first_matrix = self.blocks[0].mlp_fc.weight
        x = x.to(torch.promote_types(x.dtype, product_dtype(first_matrix)))
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[:length]
        else:
            rotation = self.cos[:length], self.sin[:length]
        x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x, rotation)
        x = self.final_norm(x)
        if targets is None:
            logits = F.linear(x, self.head_weight, self.head_bias)
            if a.logit_cap:
                logits, _ = soft_cap(logits, a.logit_cap)
            return logits
        gradient_scale = 1.0
        if a.loss_gradient == "sum":
            gradient_scale = self.tokens_per_step or targets.numel()
        return self.loss(
            x, targets, self.head_weight, self.head_bias, a.logit_cap,
            gradient_scale,
        )

    def parameter_roles(self):
        """Every parameter exactly once, by its role in the model.

        A head that is tied to the token embedding is among the embeddings.

        Returns
        -------
        roles : dict of str to list of nn.Parameter
            ``hidden_matrices``, ``embeddings``, ``head``,
            ``gains_and_biases``.
        """
        embeddings = [
            module.weight
            for module in (self.token_embedding, self.position_embedding)
            if module is not None
        ]
        head = [] if self.head is None else [self.head.weight]
        outer = {id(p) for p in [*embeddings, *head]}
        inner = [p for p in self.parameters() if id(p) not in outer]
        return {
            "hidden_matrices": [p for p in inner if p.ndim == 2],
            "embeddings": embeddings,
            "head": head,
            "gains_and_biases": [p for p in inner if p.ndim == 1],
        }

    def flops_per_token(self, sequence_length):
        """Floating-point operations of a forward and backward pass, per
        token: 6 per weight of a matrix product (the head included), and 12
        per layer, width and position for attention, which counts the masked
        half too (Chowdhery et al., "PaLM", 2022, appendix B)."""
        hidden = self.parameter_roles()["hidden_matrices"]
        weights = self.head_weight.numel() + sum(p.numel() for p in hidden)
        a = self.architecture
        return 6 * weights + 12 * a.n_layer * a.n_embd * sequence_length

    def activation_bytes(self):
        """Bytes per token, at most, that a training step keeps for its
        backward pass, in float32; bfloat16 keeps about 60 % of it."""
        a = self.architecture
        # Activations as wide as the model, per layer: inputs and outputs of
        # two norms; queries, keys, values and their averages; the MLP, four
        # times as wide, before and after its activation.
        widths = 16
        if a.qk_norm or a.positions != "learned":
            # Queries and keys are kept once more, and so are the averages, in
            # another order.
            widths += 3
        if a.norm == "rms_norm" and a.norm_gain:
            # Both norms keep their output before the gain.
            widths += 2
        # What is around the layers keeps as much as one layer, at most.
        return 4 * widths * (a.n_layer + 1) * a.n_embd
