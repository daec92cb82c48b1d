"""Which attention heads a rank holds, in what order it stores them, and what it sends where.

A stage cuts its heads in sp*tp blocks; the rank at (s, t) computes block ``t*sp + s`` in every
mode, so the cache never moves. Its *base* shard is the tensor rank's: blocks ``t*sp`` to
``t*sp + sp - 1``, stored block by block::

    [q_0 k_0 v_0 | q_1 k_1 v_1 | ...]         rung (sp', tp'): the sp' blocks around mine that
                                              begin at a multiple of sp'; shift: mine alone

A view's output is then in the order in which the all-to-all sends it. With fewer KV heads than
ranks several blocks share one, which is stored once, in the nearest of them to mine::

    [q_0 | q_1 k v | q_2]                     mine is block 1: every view that holds it is one range

and the send buffer picks rows of the output (and repeats KV heads). The nearest, because a view
that holds both my block and another one holds all between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan, RankCoords


class Part(StrEnum):
    """A third of the fused projection."""

    Q = "q"
    K = "k"
    V = "v"


@dataclass(frozen=True, kw_only=True, order=True)
class Head:
    """One head of the whole model, by its global number."""

    part: Part
    index: int


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """Consecutive heads of one part: ``start`` to ``stop`` in the checkpoint's order."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """The part of the stored heads that one mode multiplies with. Numbers count heads.

    ``start`` to ``stop`` in ``HeadLayout.stored``; ``send``: positions inside this range of the
    all-to-all send buffer, sp' blocks of ``HeadLayout.block`` heads.
    """

    start: int
    stop: int
    send: tuple[int, ...]

    @property
    def is_send_order(self) -> bool:
        """Whether the range is stored in send order, so that nothing is picked."""
        return self.send == tuple(range(self.stop - self.start))


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """Heads of one rank: ``stored`` is the base shard in storage order, ``views`` what each mode
    takes of it, ``num_q`` and ``num_kv`` the heads of one block.
    """

    stored: tuple[Head, ...]
    views: Mapping[Mode, HeadView]
    num_q: int
    num_kv: int

    @property
    def block(self) -> int:
        """Heads of one block: what a rank attends with."""
        return self.num_q + 2 * self.num_kv

    def runs(self) -> list[HeadRun]:
        """``stored`` as the fewest slices of the checkpoint's q, k and v."""
        found: list[HeadRun] = []
        for head in self.stored:
            last = found[-1] if found else None
            if last and last.part is head.part and last.stop == head.index:
                found[-1] = HeadRun(part=last.part, start=last.start, stop=head.index + 1)
            else:
                found.append(HeadRun(part=head.part, start=head.index, stop=head.index + 1))
        return found


def head_layout(model: ModelConfig, plan: ParallelPlan, coords: RankCoords) -> HeadLayout:
    """The layout of the rank at ``coords``; the plan has passed ``check_plan``."""
    blocks = [_block(model, plan, coords.t * plan.sp + s) for s in range(plan.sp)]
    stored = _stored(blocks, coords.s)
    mine = blocks[coords.s]
    return HeadLayout(
        stored=stored,
        views={
            mode: _view(stored, [blocks[i] for i in block_range(plan, mode, coords)])
            for mode in plan.modes
        },
        num_q=sum(head.part is Part.Q for head in mine),
        num_kv=sum(head.part is Part.K for head in mine),
    )


def block_range(plan: ParallelPlan, mode: Mode, coords: RankCoords) -> range:
    """Which of its own sp blocks the rank at ``coords`` multiplies with in ``mode``: the sp' ones
    around its own that begin at a multiple of sp'.
    """
    sp = plan.rung(mode).sp
    first = coords.s // sp * sp
    return range(first, first + sp)


def _block(model: ModelConfig, plan: ParallelPlan, index: int) -> list[Head]:
    """Heads of block ``index`` of sp*tp, q before k before v."""
    size = plan.stage_size
    num_q = model.num_heads // size
    num_kv = max(1, model.num_kv_heads // size)
    first_kv = index * model.num_kv_heads // size
    return [
        Head(part=part, index=first + i)
        for part, first, count in (
            (Part.Q, index * num_q, num_q),
            (Part.K, first_kv, num_kv),
            (Part.V, first_kv, num_kv),
        )
        for i in range(count)
    ]


def _stored(blocks: list[list[Head]], mine: int) -> tuple[Head, ...]:
    """All heads of ``blocks`` in order, each once: in the block nearest to ``mine`` that has it."""
    nearest: dict[Head, int] = {}
    for index in sorted(range(len(blocks)), key=lambda index: abs(index - mine)):
        for head in blocks[index]:
            nearest.setdefault(head, index)
    return tuple(
        head for index, block in enumerate(blocks) for head in block if nearest[head] == index
    )


def _view(stored: tuple[Head, ...], blocks: list[list[Head]]) -> HeadView:
    sent = [head for block in blocks for head in block]
    where = {head: position for position, head in enumerate(stored)}
    start = min(where[head] for head in sent)
    stop = max(where[head] for head in sent) + 1
    assert stop - start == len(set(sent)), f"{stored} hold {sent} in more than one range"
    return HeadView(start=start, stop=stop, send=tuple(where[head] - start for head in sent))
