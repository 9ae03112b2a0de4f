"""Architecture: the sizes and switches of ``transformer.py``, checked."""
import dataclasses
from typing import Literal, get_args, get_origin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and switches of a model; ``named.py`` has the named ones.

    Attributes
    ----------
    n_layer, n_head, n_embd : int
        Depth, attention heads per layer, width.
    context_length : int
        Longest sequence, in tokens.
    vocab_multiple : int
        Number of which the vocabulary's size is made a multiple, by tokens
        that are never targets, but receive probability and are trained. 1
        adds none.
    embedding_dtype : str
        Precision of the embedding's weight. If it is bfloat16, so are its
        gradient and optimizer state, and so is the residual stream where
        matrix products are computed in bfloat16.
    embedding_norm : bool
        Whether there is a norm between the embedding and the first layer.
    positions : str
        Kind of position encoding: "learned", which is added to the
        embedding, or a function of ``rotary.py``.
    norm : str
        Kind of the norms before attention, the MLP and the head.
    norm_gain : bool
        Whether norms have a gain.
    norm_eps : float
        Number that is added to the variance (LayerNorm) or to the mean
        square (RMSNorm).
    qk_norm : bool
        Whether each head's queries and keys are RMS-normed, without gain
        (Dehghani et al., "Scaling Vision Transformers to 22 Billion
        Parameters", 2023).
    fused_qkv : bool
        Whether queries, keys and values come from one matrix, not three.
    attention_scale : float or "auto"
        Factor of the scores; "auto" is 1 / sqrt(head width).
    damped_attention : bool
        Whether what attention adds to the residual stream is multiplied by
        1 / sqrt(2 n_layer).
    activation : str
        Activation of the MLP; "gelu" is the exact one, "gelu_tanh" its
        approximation.
    bias : bool
        Whether linear layers and LayerNorms have biases.
    tied_head : bool
        Whether the head's weight is the embedding's.
    head_bias : bool
        Whether a bias is added to the logits.
    logit_cap : float
        Smooth bound of the logits (``cross_entropy.soft_cap``); 0 is none.
    initialisation : str
        Scheme of ``initialisation.py``.
    loss_gradient : str
        Loss whose gradient is taken: the "mean" or the "sum" over the tokens
        of a step. The loss that is returned is the mean in both cases.

    Raises
    ------
    ValueError
        If a value isn't one that the switch can have.
    """

    n_layer: int
    n_head: int
    n_embd: int
    context_length: int
    vocab_multiple: int
    embedding_dtype: Literal["float32", "bfloat16"]
    embedding_norm: bool
    positions: Literal["learned", "rotary", "half_rotary"]
    norm: Literal["layer_norm", "rms_norm"]
    norm_gain: bool
    norm_eps: float
    qk_norm: bool
    fused_qkv: bool
    attention_scale: float | Literal["auto"]
    damped_attention: bool
    activation: Literal["gelu", "gelu_tanh", "relu_squared"]
    bias: bool
    tied_head: bool
    head_bias: bool
    logit_cap: float
    initialisation: Literal["gpt2", "torch", "zero_projections"]
    loss_gradient: Literal["mean", "sum"]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check(field.name, field.type)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of "
                f"n_head={self.n_head}."
            )
        multiple = {"learned": 1, "rotary": 2, "half_rotary": 4}
        if self.head_dim % multiple[self.positions]:
            raise ValueError(
                f"positions={self.positions!r} needs heads whose width is a "
                f"multiple of {multiple[self.positions]}; "
                f"n_embd={self.n_embd} over n_head={self.n_head} gives "
                f"{self.head_dim}."
            )

    def _check(self, name, kind):
        value = getattr(self, name)
        if kind is int:
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name}={value!r} must be a whole number of at least 1."
                )
        elif kind is bool:
            if type(value) is not bool:
                raise ValueError(f"{name}={value!r} must be True or False.")
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(
                    f"{name}={value!r} is not one of "
                    f"{', '.join(get_args(kind))}."
                )
        elif value == "auto" and name == "attention_scale":
            pass
        elif type(value) not in (int, float) or not (
            0 <= value < float("inf") and (value or name == "logit_cap")
        ):
            least = "0 or more" if name == "logit_cap" else "above 0"
            raise ValueError(f"{name}={value!r} must be a number {least}.")

    def matrix_weights(self, vocab_size):
        """Number of weights in matrix products, the head's included; a
        training step computes about 6 operations with each per token."""
        return self.n_embd * (12 * self.n_layer * self.n_embd + vocab_size)

    @property
    def head_dim(self):
        """Dimensions of a query, key or value of one head."""
        return self.n_embd // self.n_head
