"""What crosses from one pipeline stage to the next: the residual stream, once per step.

Base: rank (p, s, t) hands its slice of tokens to (p+1, s, t). Shift: every rank of a stage holds
all rows, so each sends 1/(sp*tp) of them and the next stage gathers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.mesh import RankGroups
from engine.plan import Mode


def send_stage(x: Tensor, mode: Mode, groups: RankGroups) -> None:
    """Hand ``x`` to the next stage. ``x``: my slice (base) or all rows (shift), ``[rows, d]``."""
    groups.pipeline.send(_my_part(x, groups) if mode is Mode.SHIFT else x, groups.stage + 1)


def recv_stage(
    *,
    num_rows: int,
    hidden_size: int,
    mode: Mode,
    groups: RankGroups,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The previous stage's ``[num_rows, hidden_size]``, as its ``send_stage`` was given it."""
    size = groups.shift.size if mode is Mode.SHIFT else 1
    like = torch.empty(-(-num_rows // size), hidden_size, dtype=dtype, device=device)
    part = groups.pipeline.recv(like, groups.stage - 1)
    if size == 1:
        return part
    return groups.shift.all_gather(part).flatten(0, 1)[:num_rows]


def _my_part(x: Tensor, groups: RankGroups) -> Tensor:
    """My 1/(sp*tp) of the rows, padded so that all parts are equally long."""
    size, rank = groups.shift.size, groups.shift.rank
    if size == 1:
        return x
    length = -(-x.shape[0] // size)
    part = x[rank * length : (rank + 1) * length]
    return F.pad(part, (0, 0, 0, length - part.shape[0]))
