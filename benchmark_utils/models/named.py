"""Named models and the choices of each, in one table.

    make_model("rotary", 50257, seed=0)
    make_model("gpt2-tiny", 257, seed=0, qk_norm=True)

``gpt2`` is llm.c's (https://github.com/karpathy/llm.c). ``rotary`` is
modded-nanogpt's of 1 October 2024 (commit 844e5fdb of
https://github.com/KellerJordan/modded-nanogpt). ``modern`` is that of its
optimization track (``train_gpt_simple.py``, 2026). docs/models.rst has more.
"""
import dataclasses

from benchmark_utils.models.architecture import Architecture
from benchmark_utils.models.transformer import Transformer

SWITCHES = {
    #                    gpt2          rotary      modern
    "vocab_multiple":   (1,            1,          64),
    "embedding_dtype":  ("float32",    "float32",  "bfloat16"),
    "embedding_norm":   (False,        False,      True),
    "positions":        ("learned",    "rotary",   "half_rotary"),
    "norm":             ("layer_norm", "rms_norm", "rms_norm"),
    "norm_gain":        (True,         False,      True),
    # The last one is float32's machine epsilon, torch's default for RMSNorm;
    # before 2025, torch took that of the input's dtype.
    "norm_eps":         (1e-5,         1e-6,       2.0**-23),
    "qk_norm":          (False,        False,      True),
    "fused_qkv":        (True,         True,       False),
    "attention_scale":  ("auto",       "auto",     0.12),
    "damped_attention": (False,        True,       False),
    "activation":       ("gelu_tanh",  "gelu",     "relu_squared"),
    "bias":             (True,         False,      True),
    "tied_head":        (True,         True,       False),
    "head_bias":        (False,        False,      True),
    "logit_cap":        (0.0,          0.0,        15.0),
    "initialisation":   ("gpt2",       "torch",    "zero_projections"),
    "loss_gradient":    ("mean",       "mean",     "sum"),
}
# Sizes and switches: whatever can be chosen on top of a name.
CHOICES = tuple(field.name for field in dataclasses.fields(Architecture))
# A head of `modern` is twice as wide as the others', at every size.
N_HEAD = {
    #          gpt2 rotary modern
    "":       (12,  12,    6),
    "-small": (6,   6,     3),
    "-tiny":  (6,   6,     3),
}
SIZES = {
    "":       {"n_layer": 12, "n_embd": 768, "context_length": 1024},
    "-small": {"n_layer": 6, "n_embd": 192, "context_length": 256},
    "-tiny":  {"n_layer": 4, "n_embd": 96, "context_length": 128},
}
MODELS = {
    row + size: Architecture(
        **SIZES[size], n_head=N_HEAD[size][column],
        **{switch: values[column] for switch, values in SWITCHES.items()},
    )
    for column, row in enumerate(["gpt2", "rotary", "modern"])
    for size in SIZES
}


def architecture(name, overrides):
    """A named model's choices, some of them replaced.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    overrides : dict
        Fields of ``Architecture``; None leaves the name's own.

    Returns
    -------
    architecture : Architecture

    Raises
    ------
    ValueError
        If there is no such name or field, or if a value is not allowed.
    """
    if name not in MODELS:
        raise ValueError(
            f"model={name!r} is unknown; use one of {', '.join(MODELS)}."
        )
    for key in overrides:
        if key not in CHOICES:
            raise ValueError(
                f"{key!r} is not a choice of a model; these are "
                f"{', '.join(CHOICES)}."
            )
    given = {key: v for key, v in overrides.items() if v is not None}
    return dataclasses.replace(MODELS[name], **given)


def make_model(name, vocab_size, seed=0, *, tokens_per_step=None,
               **overrides):
    """A fresh model, on the CPU.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    vocab_size : int
    seed : int
        Seed of the initialisation.
    tokens_per_step : int or None
        Number of tokens of a step: see ``Transformer``.
    **overrides
        Fields of ``Architecture`` that replace the name's own; None doesn't.

    Returns
    -------
    model : Transformer

    Raises
    ------
    ValueError
        See ``architecture``.
    """
    return Transformer(
        architecture(name, overrides), vocab_size, seed, tokens_per_step
    )


def describe(name, overrides):
    """A model as results name it: ``gpt2`` or ``gpt2,qk_norm=True``.

    Parameters
    ----------
    name, overrides
        Arguments of ``architecture``. Choices that equal the name's own are
        left out of the description.

    Returns
    -------
    description : str
    """
    changed = dataclasses.asdict(architecture(name, overrides)).items()
    own = dataclasses.asdict(MODELS[name])
    return ",".join([name] + [
        f"{key}={value}" for key, value in changed if value != own[key]
    ])
