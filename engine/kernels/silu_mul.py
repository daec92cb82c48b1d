"""The gated activation between the two matrices of the feed-forward part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor, num_blocks: int) -> Tensor:
    """``silu(gate) * up`` (arXiv 2002.05202) of ``gate_up[n, num_blocks * 2 * f]``, stored block
    by block as ``[gate_0 up_0 | gate_1 up_1 | ...]`` -> ``[n, num_blocks * f]``.
    """
    if num_blocks == 1:
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)
    blocks = gate_up.view(gate_up.shape[0], num_blocks, 2, -1)
    return F.silu(blocks[:, :, 0]).mul_(blocks[:, :, 1]).flatten(1)
