"""Ulysses sequence parallelism: tokens split outside attention, heads split inside it.

Source: DeepSpeed-Ulysses (arXiv 2309.14509), for inference as in arXiv 2509.16495, section 3.
Rows are tokens of the flattened step, padded to a multiple of SP; slice s holds rows
``s*n/SP`` to ``(s+1)*n/SP``. SP is that of the step's mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.parallel.communicator import Communicator
from engine.parallel.heads import HeadView


class HeadExchange:
    """The two all-to-alls around attention in one mode, over its sequence group.

    ``view`` says which heads go to which member, ``block`` to each. KV heads that several members
    need are repeated in the send buffer, so that one fused all-to-all serves any head counts.
    """

    def __init__(
        self,
        view: HeadView,
        *,
        block: int,
        head_dim: int,
        group: Communicator,
        device: torch.device,
    ) -> None:
        self._group = group
        self._head_dim = head_dim
        self._num_heads = view.stop - view.start
        self._block = block
        self._send: Tensor | None = None
        self._picks = torch.empty(0, dtype=torch.int64, device=device)
        # Those that CUDA graphs read, by their number of rows.
        self._captured_picks: dict[int, Tensor] = {}
        if not view.is_send_order:
            self._send = torch.tensor(view.send, device=device).view(group.size, 1, -1)

    def to_heads(self, qkv: Tensor) -> Tensor:
        """My tokens, the view's heads ``[n/SP, heads*hd]`` -> all tokens, my heads
        ``[n, (q + 2 kv)*hd]``.
        """
        size, num_rows, width = self._group.size, qkv.shape[0], self._block * self._head_dim
        if size == 1:
            return qkv
        if self._send is None:
            send = qkv.view(num_rows, size, width).transpose(0, 1).contiguous()
        else:
            send = self._picked(qkv, self._send)
        return self._group.all_to_all(send).view(size * num_rows, width)

    def to_tokens(self, attended: Tensor) -> Tensor:
        """All tokens, my heads ``[n, q*hd]`` -> my tokens, all the view's query heads
        ``[n/SP, SP*q*hd]``, in the model's head order.
        """
        size, width = self._group.size, attended.shape[1]
        if size == 1:
            return attended
        received = self._group.all_to_all(attended.view(size, -1, width))
        return received.transpose(0, 1).reshape(-1, size * width)

    def _picked(self, qkv: Tensor, send: Tensor) -> Tensor:
        """The send buffer ``[SP, n/SP, block*hd]`` from heads in another order."""
        picked = qkv.view(-1, self._head_dim).index_select(0, self._picks_of(qkv, send))
        return picked.view(self._group.size, qkv.shape[0], -1)

    def _picks_of(self, qkv: Tensor, send: Tensor) -> Tensor:
        num_rows = qkv.shape[0]
        if num_rows in self._captured_picks:
            return self._captured_picks[num_rows]
        if len(self._picks) != num_rows * send.numel():  # all layers of a step ask for the same
            first = torch.arange(num_rows, device=qkv.device) * self._num_heads
            self._picks = (first.view(1, -1, 1) + send).flatten()
        if qkv.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured_picks[num_rows] = self._picks
        return self._picks


@dataclass(frozen=True, kw_only=True)
class RowExchange:
    """How the rows that need logits reach every member of the sequence ``group``, with the same
    shape on each of them.

    Every member contributes as many rows as the fullest one (uneven gathers fail on gloo);
    ``mine`` i8[most] picks my contribution, ``order`` i8[R] the wanted rows out of all.
    """

    group: Communicator
    mine: Tensor
    order: Tensor

    def run(self, part: Tensor) -> Tensor:
        """Rows ``mine`` of my slice, ``[most, d]`` -> the wanted rows ``[R, d]``, on every rank."""
        gathered = self.group.all_gather(part)
        return gathered.flatten(0, 1).index_select(0, self.order)


def row_exchange(
    rows: npt.NDArray[np.int64], *, rows_per_rank: int, group: Communicator, device: torch.device
) -> RowExchange:
    """The exchange of ``rows`` (any rows of the whole step, in any order) over ``group``."""
    owner, rank = rows // rows_per_rank, group.rank
    counts = np.bincount(owner, minlength=group.size)
    most = int(counts.max())
    # A row's place among its owner's rows is its place in the order by owner, less the number of
    # rows of the owners before. The sort is stable, so that each owner sends its rows in the order
    # of ``rows``.
    by_owner = np.argsort(owner, kind="stable")
    place = np.empty_like(rows)
    place[by_owner] = np.arange(len(rows)) - (np.cumsum(counts) - counts)[owner[by_owner]]
    mine = np.zeros(most, dtype=np.int64)
    mine[: counts[rank]] = rows[owner == rank] - rank * rows_per_rank
    return RowExchange(
        group=group,
        mine=to_device(mine, device),
        order=to_device(owner * most + place, device),
    )
