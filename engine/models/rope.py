"""Rotary frequencies and the table of angles by position, as ``transformers`` computes them."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from engine.spec.model import ModelConfig
from engine.spec.rope import RopeKind, RopeScaling


def inverse_frequencies(model: ModelConfig, *, context: int | None = None) -> Tensor:
    """Radians per position of each pair of dimensions, f8[head_dim / 2].

    ``context`` is the most positions a sequence may have, by default the model's. LongRoPE has
    other frequencies for contexts beyond the one it was trained with.
    """
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
    frequencies = model.rope_theta**-exponents
    scaling = model.rope_scaling
    if scaling is None:
        return frequencies
    match scaling.kind:
        case RopeKind.LLAMA3:
            return _llama3(frequencies, scaling)
        case RopeKind.LINEAR:
            return frequencies / scaling.factor
        case RopeKind.DYNAMIC:
            return frequencies
        case RopeKind.YARN:
            return _yarn(frequencies, scaling, model)
        case RopeKind.LONGROPE:
            is_long = (context or model.max_positions) > scaling.original_max_positions
            factors = scaling.long_factors if is_long else scaling.short_factors
            return frequencies / torch.tensor(factors, dtype=torch.float64)
        case _:
            assert_never(scaling.kind)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: long waves are slowed by ``factor`` and short ones kept. Waves in between
    are blended linearly, by how many of their periods fit in the original context.
    """
    periods = scaling.original_max_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((periods - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _yarn(frequencies: Tensor, scaling: RopeScaling, model: ModelConfig) -> Tensor:
    """YaRN: as Llama 3's, but blended by the number of the dimension, between those that turn
    ``beta_fast`` and ``beta_slow`` times in the original context.
    """

    def dimension(turns: float) -> float:
        wave = scaling.original_max_positions / (turns * 2 * math.pi)
        return model.head_dim * math.log(wave) / (2 * math.log(model.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, model.head_dim - 1)
    if low == high:
        high += 0.001
    dimensions = torch.arange(len(frequencies), dtype=torch.float64)
    slowed = ((dimensions - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - slowed) * frequencies + slowed * frequencies / scaling.factor


def rope_table(
    model: ModelConfig,
    *,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    context: int | None = None,
) -> Tensor:
    """Cosines and sines of positions ``0..num_positions-1``, computed in float64 once.

    Stored in float32 (float64 where the model computes in float64) as ``[positions, hd]``,
    cosines beside sines. ``context`` as in :func:`inverse_frequencies`.
    """
    frequencies = inverse_frequencies(model, context=context)
    radians = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.cat((radians.cos(), radians.sin()), dim=1)
    if model.rope_scaling is not None:
        table *= model.rope_scaling.attention_factor
    return table.to(kept).to(device)
