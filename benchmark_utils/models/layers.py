"""A layer's matrix product, the fastest way for device and precision."""
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark_utils.device import multiplies_bfloat16, product_dtype

# The processor has the instructions, and torch's oneDNN uses them.
NATIVE_BFLOAT16 = (
    multiplies_bfloat16(torch.device("cpu"))
    and torch.backends.mkldnn.is_available()
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


def linear(x, layer, gelu=False):
    """``layer(x)``, and tanh GELU of it if asked for.

    torch's own operations, except without gradients in bfloat16 on a CPU:
    there oneDNN, with which torch multiplies, is given the weight in its own
    order and applies GELU to what it is about to write. That is worth a tenth
    of an evaluation. A training step needs what enters GELU for its backward
    pass, where it also multiplies the weight in another order.

    Parameters
    ----------
    x : tensor [..., in_features]
    layer : nn.Linear, with a bias
    gelu : bool

    Returns
    -------
    y : tensor [..., out_features]
        In the autocast dtype where autocast is on.
    """
    if (
        NATIVE_BFLOAT16 and x.device.type == "cpu"
        and product_dtype(x) == torch.bfloat16
        and not torch.is_grad_enabled()
    ):
        return _packed_linear(x, layer.weight, layer.bias, gelu)
    y = layer(x)
    return F.gelu(y, approximate="tanh") if gelu else y


# An operation of its own, because the compiler uses oneDNN's order only for
# weights that never change. It makes the same two calls then, for which torch
# has no public name.
@torch.library.custom_op("nanogpt::packed_linear", mutates_args=())
def _packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor, gelu: bool
) -> Tensor:
    x, weight, bias = (t.to(torch.bfloat16) for t in (x, weight, bias))
    packed = torch.ops.mkldnn._reorder_linear_weight(
        weight, x.numel() // x.shape[-1]
    )
    activation = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, *activation)


_packed_linear.register_fake(
    lambda x, weight, bias, gelu: x.new_empty(
        *x.shape[:-1], len(weight), dtype=torch.bfloat16
    )
)
