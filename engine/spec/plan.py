"""Parallel plans: degrees, modes, rank order, and why a plan cannot run a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING

from engine.spec.errors import PlanError

if TYPE_CHECKING:
    from engine.spec.config import ModelConfig

DEFAULT_SHIFT_THRESHOLD = 256
AXES = ("dp", "pp", "sp", "tp")


class Mode(StrEnum):
    """How one step runs: ``base`` = (sp, tp); ``shift`` = full TP over sp*tp ranks."""

    BASE = "base"
    SHIFT = "shift"


@dataclass(frozen=True, kw_only=True, order=True)
class ParallelPlan:
    """Degrees of one deployment. Rank order, slowest axis first: dp, pp, sp, tp.

    Raises:
        PlanError: a degree below 1, or Shift where there is nothing to switch (sp = 1).
    """

    dp: int = 1
    pp: int = 1
    sp: int = 1
    tp: int = 1
    shift: bool = False

    def __post_init__(self) -> None:
        for axis in AXES:
            degree = getattr(self, axis)
            if not isinstance(degree, int) or degree < 1:
                raise PlanError(f"{axis}={degree}: a degree is a whole number of at least 1")
        if self.shift and self.sp == 1:
            raise PlanError(
                f"shift needs sp > 1 (plan has sp=1, tp={self.tp}): base and shift mode would be "
                "the same; raise sp or leave shift out"
            )

    @property
    def world_size(self) -> int:
        """Ranks in all, dp*pp*sp*tp."""
        return self.dp * self.replica_size

    @property
    def replica_size(self) -> int:
        """Ranks of one replica, pp*sp*tp."""
        return self.pp * self.stage_size

    @property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage, sp*tp: the size of the ordered shift group."""
        return self.sp * self.tp

    @property
    def replica(self) -> ParallelPlan:
        """The plan of one replica: the same degrees with dp=1."""
        return ParallelPlan(pp=self.pp, sp=self.sp, tp=self.tp, shift=self.shift)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes a step of this plan may run in."""
        return (Mode.BASE, Mode.SHIFT) if self.shift else (Mode.BASE,)

    def __str__(self) -> str:
        parts = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        text = ",".join(parts) or "tp=1"
        return f"{text},shift" if self.shift else text


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What a command line says: a plan and, with ``shift=N``, its threshold in tokens."""

    plan: ParallelPlan
    threshold_tokens: int | None = None


def parse_plan(text: str) -> PlanSpec:
    """Read ``sp=4,tp=2``, ``sp=4,tp=2,shift`` or ``sp=4,tp=2,shift=256``.

    Raises:
        PlanError: an unknown word, a repeated one, or a value that is no whole number.
    """
    degrees: dict[str, int] = {}
    shift, threshold = False, None
    for part in (p.strip() for p in text.split(",")):
        word, has_value, raw = (s.strip() for s in part.partition("="))
        if word in degrees or (word == "shift" and shift):
            raise PlanError(f"plan {text!r}: {word!r} stands twice")
        if word == "shift":
            shift = True
            threshold = _whole_number(text, word, raw) if has_value else None
        elif word in AXES:
            degrees[word] = _whole_number(text, word, raw)
        else:
            raise PlanError(
                f"plan {text!r}: unknown word {word!r}; known words are dp, pp, sp, tp and shift, "
                "as in 'sp=4,tp=2,shift=256'"
            )
    return PlanSpec(plan=ParallelPlan(**degrees, shift=shift), threshold_tokens=threshold)


def _whole_number(text: str, word: str, raw: str) -> int:
    if not raw.isdecimal():
        raise PlanError(f"plan {text!r}: {word}={raw!r} is not a whole number")
    return int(raw)


@dataclass(frozen=True, kw_only=True)
class RankCoords:
    """Where a rank of one replica stands: pipeline stage p, sequence slice s, tensor shard t."""

    p: int
    s: int
    t: int

    def shift_index(self, plan: ParallelPlan) -> int:
        """Shard of every weight this rank holds in shift mode, ``t*sp + s`` (keeps KV in place)."""
        return self.t * plan.sp + self.s


def rank_coords(plan: ParallelPlan, rank: int) -> RankCoords:
    """Coordinates of ``rank`` inside its replica (0 <= rank < pp*sp*tp)."""
    stage, inside = divmod(rank, plan.stage_size)
    s, t = divmod(inside, plan.tp)
    return RankCoords(p=stage, s=s, t=t)


def rank_of(plan: ParallelPlan, coords: RankCoords) -> int:
    """The rank at ``coords``; inverse of :func:`rank_coords`."""
    return coords.p * plan.stage_size + coords.s * plan.tp + coords.t


def stage_layers(num_layers: int, pp: int) -> list[range]:
    """Layers of each pipeline stage; the first ``num_layers % pp`` stages hold one more."""
    small, extra = divmod(num_layers, pp)
    starts = [p * small + min(p, extra) for p in range(pp + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def padded_vocab_size(vocab_size: int, stage_size: int) -> int:
    """The vocabulary, padded up to a multiple of sp*tp."""
    return -(-vocab_size // stage_size) * stage_size


def infeasible_reasons(plan: ParallelPlan, model: ModelConfig) -> list[str]:
    """Why ``model`` cannot run under ``plan``, each with the numbers; empty when it can.

    The divisibility rules are those of ``docs/decisions/0001-one-weight-copy.md``.
    """
    stage, tp, sp = plan.stage_size, plan.tp, plan.sp
    heads, kv_heads, ffn = model.num_heads, model.num_kv_heads, model.ffn_size
    reasons = []
    if heads % stage:
        reasons.append(f"{heads} query heads do not divide by sp*tp = {sp}*{tp} = {stage}")
    if kv_heads % tp and tp % kv_heads:
        reasons.append(f"{kv_heads} KV heads and tp={tp}: neither divides the other")
    else:
        per_tp = max(1, kv_heads // tp)
        if per_tp % sp and sp % per_tp:
            reasons.append(
                f"{per_tp} KV heads per tensor rank and sp={sp}: neither divides the other"
            )
    if ffn % stage:
        reasons.append(f"FFN size {ffn} does not divide by sp*tp = {sp}*{tp} = {stage}")
    if plan.pp > model.num_layers:
        reasons.append(f"pp={plan.pp} stages for {model.num_layers} layers: a stage would be empty")
    return reasons


def check_plan(plan: ParallelPlan, model: ModelConfig) -> None:
    """Refuse a plan this model cannot run, before any process starts.

    Raises:
        PlanError: with every reason and its numbers.
    """
    if reasons := infeasible_reasons(plan, model):
        raise PlanError(f"plan {plan} cannot run this model: " + "; ".join(reasons))


def list_plans(model: ModelConfig, num_devices: int, *, max_pp: int = 8) -> list[ParallelPlan]:
    """Every plan this model can run on 1..num_devices devices, Shift on and off, sorted by size."""
    plans = []
    for degrees in _degrees(num_devices):
        for shift in (False, True) if degrees["sp"] > 1 else (False,):
            plan = ParallelPlan(**degrees, shift=shift)
            if degrees["pp"] <= max_pp and not infeasible_reasons(plan, model):
                plans.append(plan)
    return sorted(plans, key=lambda plan: (plan.world_size, plan))


def _degrees(num_devices: int) -> Iterator[dict[str, int]]:
    counts = range(1, num_devices + 1)
    for dp in counts:
        for pp in counts:
            for sp in counts:
                for tp in counts:
                    if prod((dp, pp, sp, tp)) <= num_devices:
                        yield {"dp": dp, "pp": pp, "sp": sp, "tp": tp}


def shift_warning(plan: ParallelPlan, threshold_tokens: int, max_num_seqs: int) -> str | None:
    """A warning when every full decode step would run in base, else None."""
    if plan.shift and threshold_tokens < max_num_seqs:
        return (
            f"shift threshold {threshold_tokens} is below max_num_seqs {max_num_seqs}: a decode "
            f"step of more than {threshold_tokens} sequences runs in base mode, the slower one "
            "for decodes on most links"
        )
    return None
