"""Modes of a step by name, and the degrees they stand for (docs/ladder.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

# Degrees beyond any machine are no rung.
MOST_DEGREE = 99_999
_DEGREE = r"[1-9]\d{0,4}"
_RUNG = re.compile(f"({_DEGREE})x({_DEGREE})")


@dataclass(frozen=True, kw_only=True, order=True)
class Rung:
    """Degrees of one step: ``sp`` slices of its tokens, each computed by ``tp`` ranks together."""

    sp: int
    tp: int

    @property
    def size(self) -> int:
        """Ranks of a pipeline stage."""
        return self.sp * self.tp

    @classmethod
    def parse(cls, text: str) -> Rung:
        """Read ``4x2``.

        Raises:
            ValueError: another form.
        """
        found = _RUNG.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no rung; one is written sp x tp, as in '4x2'")
        return cls(sp=int(found[1]), tp=int(found[2]))

    def __str__(self) -> str:
        return f"{self.sp}x{self.tp}"


def is_rung(text: str) -> bool:
    """Whether ``text`` has the form of a rung, such as ``4x2``."""
    return _RUNG.fullmatch(text) is not None


class RungNames(StrEnum):
    """Fixed words and beside them every rung: ``4x2`` is a member of each such class.

    A name rather than degrees, so that it means the same in a document whose plan stands
    elsewhere. Iterating gives the fixed words only; ``ParallelPlan.modes`` are the rungs of a plan.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str) or not is_rung(value):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        # So that a rung is one object however often it is read, like any member. It stays in
        # memory, some 200 bytes; who sends names by the million needs a key and is held to its
        # rate. The map holds members of this class, which its annotation (of Enum) cannot tell.
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]


class Mode(RungNames):
    """How one step runs: ``base`` = (sp, tp) of the plan, ``shift`` = full TP over all sp*tp ranks
    of a stage, or a rung between them, such as ``4x2``.
    """

    BASE = "base"
    SHIFT = "shift"


class ModePin(RungNames):
    """What decides the mode of a step on a Shift plan.

    ``table``: the times measured when the ranks started; ``auto``: the thresholds; ``base``,
    ``shift`` or a rung such as ``4x2`` hold one mode.
    """

    TABLE = "table"
    AUTO = "auto"
    BASE = "base"
    SHIFT = "shift"

    @property
    def mode(self) -> Mode | None:
        """The mode that is held; None where each step has its own."""
        return None if self in (ModePin.TABLE, ModePin.AUTO) else Mode(self.value)


MODE_PATTERN = f"^(base|shift|{_DEGREE}x{_DEGREE})$"
PIN_PATTERN = f"^(table|auto|base|shift|{_DEGREE}x{_DEGREE})$"
