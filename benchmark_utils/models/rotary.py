"""Rotary positions: queries and keys turned by angles that grow with the
position (Su et al., "RoFormer", 2021).

Dimension i of a head is paired with dimension i + half its width. Both kinds
are those of modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt),
which turns by minus the angle; products of queries and keys are the same.
"""
import torch


def rotary(head_dim):
    """Angles per position of RoFormer: base 10,000, all pairs turn.

    Parameters
    ----------
    head_dim : int, a multiple of 2

    Returns
    -------
    frequencies : float64 tensor [head_dim / 2], radians per position
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
    return 10000.0 ** (-pairs / head_dim)


def half_rotary(head_dim):
    """Angles per position of ``train_gpt_simple.py``: the first half of the
    pairs turns at 1 to 1/1024, the other half never.

    Parameters
    ----------
    head_dim : int, a multiple of 4

    Returns
    -------
    frequencies : float64 tensor [head_dim / 2], radians per position
    """
    quarter = head_dim // 4
    exponents = torch.linspace(0, 1, quarter, dtype=torch.float64)
    return torch.cat([(1 / 1024) ** exponents, torch.zeros(quarter)])


def rotation_table(frequencies, length):
    """Cosine and sine of each position's angles.

    Parameters
    ----------
    frequencies : float64 tensor [pairs]
    length : int
        Positions.

    Returns
    -------
    cos, sin : float32 tensors [length, pairs]
    """
    positions = torch.arange(length, dtype=torch.float64)
    angles = torch.outer(positions, frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """Turn each pair of dimensions of queries or keys, in float32.

    Parameters
    ----------
    x : tensor [..., sequence, head width]
    cos, sin : float32 tensors [sequence, head width / 2]

    Returns
    -------
    rotated : tensor like x
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * cos + second * sin, second * cos - first * sin], dim=-1
    ).to(x.dtype)
