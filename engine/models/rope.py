"""Rotary frequencies and the table of angles by position; default and Llama 3 scaling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.kernels.rotary import RotaryAngles
from engine.spec.model import ModelConfig, RopeScaling


def inverse_frequencies(model: ModelConfig) -> Tensor:
    """Radians per position of each pair of dimensions, f8[head_dim / 2]."""
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
    frequencies = model.rope_theta**-exponents
    return _llama3(frequencies, model.rope_scaling) if model.rope_scaling else frequencies


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: long waves are slowed by ``factor`` and short ones kept. Waves in between
    are blended linearly, by how many of their periods fit in the original context.
    """
    periods = scaling.original_max_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((periods - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


class RopeTable:
    """Cosines and sines of positions ``0..num_positions-1``, computed in float64 once.

    Stored in float32 (float64 where the model computes in float64) as ``[positions, hd]``,
    cosines beside sines.
    """

    def __init__(
        self, model: ModelConfig, *, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        frequencies = inverse_frequencies(model)
        radians = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        self._table = torch.cat((radians.cos(), radians.sin()), dim=1).to(kept).to(device)

    def angles(self, positions: Tensor) -> RotaryAngles:
        """Angles of ``positions`` i8[n], each below ``num_positions``."""
        cos, sin = self._table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
        return RotaryAngles(cos=torch.cat((cos, cos), dim=-1), sin=torch.cat((-sin, sin), dim=-1))
