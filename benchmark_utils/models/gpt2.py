"""GPT-2 as llm.c trains it.

Learned positions, pre-LayerNorm, tanh GELU, fused qkv, biases everywhere but
in the head, which is tied to the token embedding; no dropout. Architecture
and initialisation follow llm.c (https://github.com/karpathy/llm.c,
``train_gpt2.py``) and Radford et al., "Language Models are Unsupervised
Multitask Learners" (2019). The default sizes give 124,439,808 parameters.

The vocabulary is not padded: no row exists that could receive probability (the
loss pads its logits, with columns of probability zero).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmark_utils.models.attention import causal_attention
from benchmark_utils.models.cross_entropy import linear_cross_entropy
from benchmark_utils.models.layers import linear


class Block(nn.Module):
    """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.attn_norm = nn.LayerNorm(n_embd)
        self.attn_qkv = nn.Linear(n_embd, 3 * n_embd)
        self.attn_proj = nn.Linear(n_embd, n_embd)
        self.mlp_norm = nn.LayerNorm(n_embd)
        self.mlp_fc = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):  # x: [batch, sequence, n_embd]
        qkv = linear(self.attn_norm(x), self.attn_qkv)
        # [3, batch, head, sequence, head width]
        q, k, v = qkv.unflatten(-1, (3, self.n_head, -1)).permute(
            2, 0, 3, 1, 4
        )
        heads = causal_attention(q, k, v)
        x = x + linear(heads.transpose(1, 2).flatten(-2), self.attn_proj)
        hidden = linear(self.mlp_norm(x), self.mlp_fc, gelu=True)
        return x + linear(hidden, self.mlp_proj)


class GPT2(nn.Module):
    """The model, initialised from one seed.

    Parameters
    ----------
    vocab_size : int
    context_length : int
        Longest sequence, the number of learned positions.
    n_layer, n_head, n_embd : int
        Depth, attention heads per layer, width.
    seed : int
        Of the initialisation: the same seed gives the same weights on every
        device, whatever else drew random numbers.

    Raises
    ------
    ValueError
        If the heads can't share the width equally.
    """

    def __init__(self, vocab_size=50257, context_length=1024, n_layer=12,
                 n_head=12, n_embd=768, seed=0):
        super().__init__()
        if n_embd % n_head:
            raise ValueError(
                f"n_embd={n_embd} must be a multiple of n_head={n_head}."
            )
        self.context_length = context_length
        # Without storage first: torch's own initialisation would be thrown
        # away, and draws from the global generator.
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(vocab_size, n_embd)
            self.position_embedding = nn.Embedding(context_length, n_embd)
            self.blocks = nn.ModuleList(
                Block(n_embd, n_head) for _ in range(n_layer)
            )
            self.final_norm = nn.LayerNorm(n_embd)
        self.to_empty(device="cpu")
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator):
        """llm.c's: N(0, 0.02) for embeddings and matrices, the projections
        back into the residual stream scaled by 1/sqrt(2 * n_layer), biases
        zero, LayerNorm the identity."""
        residual_std = 0.02 / math.sqrt(2 * len(self.blocks))
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                residual = name.endswith(("attn_proj", "mlp_proj"))
                std = residual_std if residual else 0.02
                module.weight.normal_(0.0, std, generator=generator)
                if isinstance(module, nn.Linear):
                    module.bias.zero_()

    def forward(self, inputs, targets=None):
        """Logits, or the mean cross-entropy if targets are given.

        Parameters
        ----------
        inputs, targets : int64 tensors, shape [batch, sequence]

        Returns
        -------
        logits : tensor [batch, sequence, vocab_size], or
        loss : float32 scalar tensor, nats per token
        """
        positions = self.position_embedding.weight[:inputs.shape[1]]
        x = self.token_embedding(inputs) + positions
        for block in self.blocks:
            x = block(x)
        x, head = self.final_norm(x), self.token_embedding.weight
        if targets is None:
            return F.linear(x, head)
        return linear_cross_entropy(x.flatten(0, 1), head, targets.flatten())

    def parameter_roles(self):
        """Every parameter exactly once, by its role in the model.

        The head is tied to the token embedding, so its list is empty.

        Returns
        -------
        roles : dict of str to list of nn.Parameter
        """
        embeddings = [
            self.token_embedding.weight, self.position_embedding.weight
        ]
        inner = [*self.blocks.parameters(), *self.final_norm.parameters()]
        return {
            "hidden_matrices": [p for p in inner if p.ndim == 2],
            "embeddings": embeddings,
            "head": [],
            "gains_and_biases": [p for p in inner if p.ndim == 1],
        }

    def flops_per_token(self, sequence_length):
        """Floating-point operations of a forward and backward pass, per
        token: 6 per weight of a matrix product (the head included), and 12
        per layer, width and position for attention, which counts the masked
        half too (Chowdhery et al., "PaLM", 2022, appendix B)."""
        head = self.token_embedding.weight
        hidden = self.parameter_roles()["hidden_matrices"]
        weights = head.numel() + sum(p.numel() for p in hidden)
        attention = len(self.blocks) * head.shape[1] * sequence_length
        return 6 * weights + 12 * attention

    def activation_bytes(self):
        """Bytes per token that a training step keeps for its backward pass:
        see ``activation_bytes``."""
        width = self.token_embedding.weight.shape[1]
        return activation_bytes(len(self.blocks), width)


def activation_bytes(n_layer, n_embd):
    """Bytes per token, at most, that a training step keeps for its backward
    pass: per layer 16 activations as wide as the model (inputs and outputs of
    two LayerNorms; queries, keys, values and their averages; the MLP, four
    times as wide, before and after GELU), and as much for what is around the
    layers, in float32. bfloat16 keeps about 60 % of it."""
    return 4 * 16 * (n_layer + 1) * n_embd
