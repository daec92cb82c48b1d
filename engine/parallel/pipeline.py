"""What crosses between pipeline stages: the residual stream forward, sampled tokens back.

Base: rank (p, s, t) hands its slice of tokens to (p+1, s, t). In other modes more ranks hold the
same slice: each rank of a tensor group sends its part of the rows, and the next stage's gathers
them. Every rank of the last stage knows all sampled tokens: (pp-1, s, t) tells them to (0, s, t),
which embeds them in a later step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.cuda import new_event, new_stream
from engine.parallel.communicator import Communicator
from engine.parallel.mesh import RankGroups
from engine.spec.modes import BASE, Mode


def send_stage(x: Tensor, mode: Mode, groups: RankGroups) -> None:
    """Hand ``x``, my slice of the tokens in ``mode`` ``[rows, d]``, to the next stage."""
    groups.pipeline.send(_my_part(x, _sharers(mode, groups)), groups.stage + 1)


def recv_stage(
    *,
    num_rows: int,
    hidden_size: int,
    mode: Mode,
    groups: RankGroups,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The ``[num_rows, hidden_size]`` that the previous stage gave to its ``send_stage``."""
    group = _sharers(mode, groups)
    size = group.size if group else 1
    like = torch.empty(-(-num_rows // size), hidden_size, dtype=dtype, device=device)
    part = groups.pipeline.recv(like, groups.stage - 1)
    if group is None:
        return part
    return group.all_gather(part).flatten(0, 1)[:num_rows]


def _sharers(mode: Mode, groups: RankGroups) -> Communicator | None:
    """The ranks that send a slice of the tokens together; None where each sends it whole."""
    group = groups.tensor(mode)
    return None if mode == BASE or group.size == 1 else group


def _my_part(x: Tensor, group: Communicator | None) -> Tensor:
    """My share of the rows among ``group``, padded so that all parts are equally long."""
    if group is None:
        return x
    size, rank = group.size, group.rank
    length = -(-x.shape[0] // size)
    part = x[rank * length : (rank + 1) * length]
    return F.pad(part, (0, 0, 0, length - part.shape[0]))


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """Ids of step ``number``, for ``slots`` i8[R]; on CUDA ``ids`` may still be on their way."""

    number: int
    slots: Tensor
    ids: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class TokenFeedback:
    """Brings sampled ids into ``last_tokens`` i8[num_slots] of the first stage, step by step.

    Both ends know the rows of every step, so that messages are the bare ids i8[R]. The last
    stage never waits: on CPU a send is buffered until the first stage reads it, and up to pp+1
    steps may stay unread while the engine idles. On CUDA (``posts_at_once``) the first stage posts
    each receive at once, on a stream of its own: a send that waited for its receive would hold up
    the activations behind it, and NCCL's watchdog would end it after a while.

    With two stages, NCCL has one queue for both directions, in which nothing passes what waits.
    Both ends queue a step's rows, then its ids, and then the next step's, so the queue never stands
    for ever. Nor does it wait longer than two would: the last stage asks for the next step's rows
    only once it has computed this step's ids.
    """

    def __init__(
        self, last_tokens: Tensor, groups: RankGroups, *, posts_at_once: bool | None = None
    ) -> None:
        self._last_tokens = last_tokens
        self._pipeline = groups.pipeline
        self._expected: deque[_Expected] = deque()
        self._posts_at_once = last_tokens.is_cuda if posts_at_once is None else posts_at_once
        self._stream: torch.cuda.Stream | None = None
        if last_tokens.is_cuda and groups.stage == 0:
            self._stream = new_stream(last_tokens.device)

    def send(self, ids: Tensor) -> None:
        """Tell the first stage the ids i8[R] of a step; called on the last stage."""
        self._pipeline.send(ids.contiguous(), 0)

    def expect(self, number: int, slots: Tensor) -> None:
        """Step ``number`` samples rows in ``slots`` i8[R]; called on the first stage, in order."""
        ids, arrived = None, None
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                ids = self._receive(slots)
                arrived = new_event()
                arrived.record()
        elif self._posts_at_once:
            ids = self._receive(slots)
        self._expected.append(_Expected(number=number, slots=slots, ids=ids, arrived=arrived))

    def receive_until(self, number: int) -> None:
        """Take in the ids of all expected steps up to ``number``, waiting for them."""
        while self._expected and self._expected[0].number <= number:
            step = self._expected.popleft()
            ids = step.ids
            if ids is None:
                ids = self._receive(step.slots)
            elif step.arrived is not None:
                stream = torch.cuda.current_stream(ids.device)
                stream.wait_event(step.arrived)
                # Both came from other streams, which would give their memory away at once.
                ids.record_stream(stream)
                step.slots.record_stream(stream)
            self._last_tokens.index_copy_(0, step.slots, ids)

    def forget(self) -> None:
        """Expect nothing any more: the groups that would bring it are gone."""
        self._expected.clear()

    def _receive(self, slots: Tensor) -> Tensor:
        return self._pipeline.recv(torch.empty_like(slots), self._pipeline.size - 1)
