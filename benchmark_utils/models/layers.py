"""Layers of the models: linear with an activation, and RMSNorm."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark_utils.hardware.device import multiplies_bfloat16, product_dtype

# The processor has the instructions, and torch's oneDNN uses them. The names
# of torch.ops.mkldnn are private, pinned by torch~=2.13.
NATIVE_BFLOAT16 = (
    multiplies_bfloat16(torch.device("cpu"))
    and torch.backends.mkldnn.is_available()
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


def identity(x):
    return x


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


def relu_squared(x):
    return F.relu(x).square()


# The function, and oneDNN's name for it as _linear_pointwise takes it.
ACTIVATIONS = {
    "none": (identity, ("none", [], "")),
    # Hendrycks & Gimpel, "Gaussian Error Linear Units" (2016).
    "gelu": (F.gelu, ("gelu", [], "none")),
    "gelu_tanh": (gelu_tanh, ("gelu", [], "tanh")),
    # So et al., "Primer" (2021). oneDNN applies ReLU; the square follows.
    "relu_squared": (relu_squared, ("relu", [], "")),
}


class Linear(nn.Linear):
    """``activation(x @ weight.T + bias)``.

    torch's own operations, except without gradients in bfloat16 on a CPU:
    there oneDNN, with which torch multiplies, is given the weight in its own
    order and applies the activation to what it is about to write. That is
    worth a tenth of an evaluation. A training step needs what enters the
    activation for its backward pass, where it also multiplies the weight in
    another order.

    Parameters
    ----------
    in_features, out_features, bias
        Arguments of ``nn.Linear``.
    activation : {"none", "gelu", "gelu_tanh", "relu_squared"}
        "gelu" is the exact one.

    Attributes
    ----------
    activate : function of a tensor
        The activation where oneDNN does not apply it.
    """

    def __init__(self, in_features, out_features, bias=True,
                 activation="none"):
        super().__init__(in_features, out_features, bias)
        self.activation = activation
        self.activate, _ = ACTIVATIONS[activation]

    def forward(self, x):  # [..., in_features] -> [..., out_features]
        if (
            NATIVE_BFLOAT16 and x.device.type == "cpu"
            and product_dtype(x) == torch.bfloat16
            and not torch.is_grad_enabled()
        ):
            return _packed_linear(x, self.weight, self.bias, self.activation)
        return self.activate(super().forward(x))


# This is an operation of its own, because the compiler uses oneDNN's order
# only for weights that never change. For those it makes the same two calls as
# here. torch has no public name for them: these are private, pinned by
# torch~=2.13.
@torch.library.custom_op("nanogpt::packed_linear", mutates_args=())
def _packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    bias = None if bias is None else bias.to(torch.bfloat16)
    packed = torch.ops.mkldnn._reorder_linear_weight(
        weight, x.numel() // x.shape[-1]
    )
    _, onednn_activation = ACTIVATIONS[activation]
    y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, *onednn_activation)
    return y.square_() if activation == "relu_squared" else y


_packed_linear.register_fake(
    lambda x, weight, bias, activation: x.new_empty(
        *x.shape[:-1], len(weight), dtype=torch.bfloat16
    )
)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich, 2019), in the dtype of its
    input, whatever that of the gain; computed in float32 within."""

    def forward(self, x):  # [..., width] -> the same
        gain = None if self.weight is None else self.weight.to(x.dtype)
        y = F.rms_norm(x, self.normalized_shape, gain, self.eps)
        # Autocast may have made the result float32.
        return y.to(x.dtype)
