"""Initialisation schemes, each drawn from one random generator.

The same seed gives the same weights on every device, whatever else drew
random numbers. Matrices and embeddings are drawn in float32 and in the order
in which the model names its modules.
"""
import math

from torch import nn

# The matrices whose products are added to the residual stream.
PROJECTIONS = ("attn_proj", "mlp_proj")


def initialise(model, scheme, generator):
    """Overwrite all weights of a model, in place.

    - ``gpt2``: llm.c's. N(0, 0.02) for embeddings and matrices, the
      projections back into the residual stream scaled by 1/sqrt(2 n_layer),
      biases zero.
    - ``torch``: uniform within 1/sqrt(inputs) for matrices and biases, as of
      ``nn.Linear``; N(0, 1) for embeddings. A tied embedding is the head's
      matrix.
    - ``zero_projections``: modded-nanogpt's ``train_gpt_simple.py``. N(0, 1)
      for embeddings, N(0, 0.33 / inputs) for matrices, zero for biases, for
      the projections back into the residual stream and for the head.

    Norms are the identity in each.

    Parameters
    ----------
    model : Transformer
    scheme : str
    generator : torch.Generator, on the CPU
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            SCHEMES[scheme](model, name, module.weight, generator)
            if getattr(module, "bias", None) is not None:
                _bias(scheme, module.bias, module.in_features, generator)
    if model.head_bias is not None:
        n_embd = model.token_embedding.embedding_dim
        _bias(scheme, model.head_bias, n_embd, generator)


def _gpt2(model, name, weight, generator):
    std = 0.02
    if name.endswith(PROJECTIONS):
        std /= math.sqrt(2 * len(model.blocks))
    weight.normal_(0.0, std, generator=generator)


def _torch(model, name, weight, generator):
    is_embedding = name.endswith("embedding")
    if is_embedding and weight is not model.head_weight:
        weight.normal_(0.0, 1.0, generator=generator)
    else:
        bound = 1 / math.sqrt(weight.shape[1])
        weight.uniform_(-bound, bound, generator=generator)


def _zero_projections(model, name, weight, generator):
    if name.endswith("embedding"):
        weight.normal_(0.0, 1.0, generator=generator)
    elif name.endswith((*PROJECTIONS, "head")):
        weight.zero_()
    else:
        std = math.sqrt(0.33 / weight.shape[1])
        weight.normal_(0.0, std, generator=generator)


SCHEMES = {
    "gpt2": _gpt2, "torch": _torch, "zero_projections": _zero_projections,
}


def _bias(scheme, bias, num_inputs, generator):
    if scheme == "torch":
        bound = 1 / math.sqrt(num_inputs)
        bias.uniform_(-bound, bound, generator=generator)
    else:
        bias.zero_()
