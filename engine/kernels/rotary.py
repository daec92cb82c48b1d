"""Rotary position embedding (arXiv 2104.09864), rotate-half layout as in the checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryAngles:
    """Per token, for the whole head: ``cos[n, 1, hd]`` and ``sin[n, 1, hd]`` with the first
    half of ``sin`` negated, so that a rotation is one multiply and one multiply-add.
    """

    cos: Tensor
    sin: Tensor


def rotary(x: Tensor, angles: RotaryAngles) -> Tensor:
    """Rotate every head of ``x[n, heads, hd]``; computed in the dtype of the angles.

    With halves a and b of a head: ``[a cos - b sin, b cos + a sin]``.
    """
    wide = x.to(angles.cos.dtype)
    swapped = wide.roll(x.shape[-1] // 2, dims=-1)
    return swapped.mul_(angles.sin).addcmul_(wide, angles.cos).to(x.dtype)


def angles_of(table: Tensor, positions: Tensor) -> RotaryAngles:
    """Angles of ``positions`` i8[n], each below the rows of ``table[positions, hd]``, which holds
    the cosines of half a head beside their sines.
    """
    cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return RotaryAngles(cos=torch.cat((cos, cos), dim=-1), sin=torch.cat((-sin, sin), dim=-1))
