"""Root-mean-square normalisation: torch reference, and the choice of version by device."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension (arXiv 1910.07467).

    Args:
        x: ``[..., d]``, or ``[..., h, d]`` where each of h heads has its own weight.
        weight: ``[d]`` or ``[h, d]``.
        eps: added to the mean of squares.

    Returns:
        A new tensor of the shape and dtype of ``x``; the mean is taken in float32, in float64
        for float64 input.
    """
    if x.is_cuda:
        from engine.kernels.rms_norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in torch operations, on any device."""
    if weight.dim() == 1:
        return torch.rms_norm(x, weight.shape, weight, eps)
    return torch.rms_norm(x, weight.shape[-1:], None, eps) * weight
