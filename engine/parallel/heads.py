"""Which attention heads a rank holds, in what order it stores them, and what it sends where.

A stage cuts its heads in sp*tp shards; the rank at (s, t) computes shard ``t*sp + s`` in both
modes, so the cache never moves. Its *base* shard is the tensor rank's: shards ``t*sp`` to
``t*sp + sp - 1``. With as many KV heads as ranks the base shard is stored shard by shard::

    [q_0 k_0 v_0 | q_1 k_1 v_1 | ...]         my shift shard: block s
                                              base output: already in all-to-all order

With fewer, several shards share a KV head, which is stored once; my own query heads stand next
to it, so that my shift shard is one range here too::

    [other q .. | q_s k_mine v_mine | other k v ..]      base output: rows picked (and KV heads
                                                         repeated) on the way to the send buffer
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.model import ModelConfig
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
class HeadLayout:
    """Heads of one rank. Numbers count heads, not rows of ``head_dim``.

    ``stored``: the base shard in storage order. ``shift_start``: where my shift shard begins in
    it, ``block`` heads long (q, then k, then v). ``send``: positions in ``stored`` of the
    all-to-all send buffer, sp blocks of ``block`` heads.
    """

    stored: tuple[Head, ...]
    shift_start: int
    send: tuple[int, ...]
    num_q: int
    num_kv: int

    @property
    def block(self) -> int:
        """Heads of one shard: what a rank attends with."""
        return self.num_q + 2 * self.num_kv

    @property
    def is_send_order(self) -> bool:
        """Whether the base shard is stored in send order, so that nothing is picked."""
        return self.send == tuple(range(len(self.stored)))

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
    shards = [_shard(model, plan, coords.t * plan.sp + s) for s in range(plan.sp)]
    mine = shards[coords.s]
    is_shared = model.num_kv_heads < plan.stage_size
    stored = _mine_together(shards, mine) if is_shared else _one_after_another(shards)
    where = {head: position for position, head in enumerate(stored)}
    return HeadLayout(
        stored=tuple(stored),
        shift_start=where[mine[0]],
        send=tuple(where[head] for shard in shards for head in shard),
        num_q=sum(head.part is Part.Q for head in mine),
        num_kv=sum(head.part is Part.K for head in mine),
    )


def _shard(model: ModelConfig, plan: ParallelPlan, index: int) -> list[Head]:
    """Heads of shard ``index`` of sp*tp, q before k before v."""
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


def _one_after_another(shards: list[list[Head]]) -> list[Head]:
    return list(itertools.chain.from_iterable(shards))


def _mine_together(shards: list[list[Head]], mine: list[Head]) -> list[Head]:
    """Other query heads, my shard, other KV heads (each once)."""
    others = [head for head in dict.fromkeys(_one_after_another(shards)) if head not in mine]
    before = [head for head in others if head.part is Part.Q]
    after = [head for head in others if head.part is not Part.Q]
    return [*before, *mine, *after]
