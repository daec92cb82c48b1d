"""Parallel plans: degrees, modes, rank order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from engine.spec.errors import PlanError
from engine.spec.modes import BASE, MOST_DEGREE, SHIFT, Mode, Rung, is_rung
from engine.spec.names import did_you_mean

DEFAULT_SHIFT_THRESHOLD = 256
# Beyond any step, and what every part that counts can hold.
MOST_THRESHOLD = 2**31 - 1
AXES = ("dp", "pp", "sp", "tp")


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

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """The modes a step of this plan may run in: with Shift on the whole ladder, from base down
        to shift. A stage with more ranks than any machine has gets no rungs in between: such a plan
        exists only in somebody's document, and is not worth the search.
        """
        if not self.shift:
            return (BASE,)
        if self.stage_size > MOST_DEGREE:
            return (BASE, SHIFT)
        degrees = [sp for sp in range(self.sp - 1, 1, -1) if self.sp % sp == 0]
        rungs = (Rung(sp=sp, tp=self.stage_size // sp) for sp in degrees)
        return (BASE, *(rung.mode for rung in rungs), SHIFT)

    def rung(self, mode: Mode) -> Rung:
        """The degrees of a step in ``mode``, whether Shift is on or not.

        Raises:
            PlanError: no view of this plan's weights has them.
        """
        if (end := self._ends.get(mode)) is not None:
            return end
        rung = Rung.parse(mode)
        if self.sp % rung.sp or rung.size != self.stage_size:
            ladder = ParallelPlan(sp=self.sp, tp=self.tp, shift=self.sp > 1)
            known = ", ".join(str(ladder.rung(mode)) for mode in ladder.modes)
            raise PlanError(
                f"mode {mode!r} is no rung of sp={self.sp}, tp={self.tp}; its rungs are "
                f"{known} (base first, shift last)"
            )
        return rung

    @cached_property
    def _ends(self) -> dict[Mode, Rung]:
        return {
            BASE: Rung(sp=self.sp, tp=self.tp),
            SHIFT: Rung(sp=1, tp=self.stage_size),
        }

    def mode_of(self, mode: Mode) -> Mode:
        """``mode`` by the name that it has under this plan: the ends are ``base`` and ``shift``.

        Raises:
            PlanError: see :meth:`rung`.
        """
        rung = self.rung(mode)
        if mode in self._ends:
            return mode
        return next((end for end, known in self._ends.items() if known == rung), mode)

    def __str__(self) -> str:
        parts = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        text = ",".join(parts) or "tp=1"
        return f"{text},shift" if self.shift else text


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What a command line says: a plan, with ``shift=N`` its threshold in tokens, and with
    ``4x2=N`` that of a rung.
    """

    plan: ParallelPlan
    threshold_tokens: int | None = None
    rung_thresholds: tuple[tuple[Mode, int], ...] = ()


def parse_plan(text: str) -> PlanSpec:
    """Read ``sp=4,tp=2``, ``sp=4,tp=2,shift``, ``sp=4,tp=2,shift=256`` or
    ``sp=4,tp=2,shift=256,2x4=1024``.

    Raises:
        PlanError: an unknown word, a repeated one, a rung that the plan does not have, or a value
            that is no whole number.
    """
    degrees: dict[str, int] = {}
    rungs: dict[Mode, int] = {}
    shift, threshold = False, None
    for part in (p.strip() for p in text.split(",")):
        word, has_value, raw = (s.strip() for s in part.partition("="))
        if word in degrees or word in rungs or (word == "shift" and shift):
            raise PlanError(f"plan {text!r}: {word!r} stands twice")
        if word == "shift":
            shift = True
            threshold = _whole_number(text, word, raw) if has_value else None
        elif word in AXES:
            degrees[word] = _whole_number(text, word, raw)
        elif is_rung(word):
            rungs[Mode(word)] = _whole_number(text, word, raw)
        else:
            raise PlanError(
                f"plan {text!r}: unknown word {word!r}{did_you_mean(word, (*AXES, 'shift'))}; "
                "known words are dp, pp, sp, tp and shift, as in 'sp=4,tp=2,shift=256'"
            )
    plan = ParallelPlan(**degrees, shift=shift)
    return PlanSpec(
        plan=plan,
        threshold_tokens=threshold,
        rung_thresholds=_rung_thresholds(text, plan, rungs),
    )


def _rung_thresholds(
    text: str, plan: ParallelPlan, found: Mapping[Mode, int]
) -> tuple[tuple[Mode, int], ...]:
    """Thresholds of rungs between base and shift, in the order of ``plan.modes``."""
    between = plan.modes[1:-1]
    named = {plan.mode_of(mode): tokens for mode, tokens in found.items()}
    if wrong := [mode for mode in named if mode not in between]:
        raise PlanError(
            f"plan {text!r}: mode {wrong[0]!r} has no threshold of its own; with Shift on, "
            f"rungs between base and shift have one (here: {', '.join(between) or 'none'})"
        )
    return tuple((mode, named[mode]) for mode in between if mode in named)


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


def shift_warning(plan: ParallelPlan, threshold_tokens: int, max_num_seqs: int) -> str | None:
    """A warning when every full decode step would run in base, else None."""
    if plan.shift and threshold_tokens < max_num_seqs:
        return (
            f"shift threshold {threshold_tokens} is below max_num_seqs {max_num_seqs}: a decode "
            f"step of more than {threshold_tokens} sequences runs in base mode, the slower one "
            "for decodes on most links"
        )
    return None
