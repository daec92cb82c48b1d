"""Modes of a step by name, and the degrees they stand for (docs/ladder.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from engine.spec.names import did_you_mean

# Degrees beyond any machine are no rung.
MOST_DEGREE = 99_999
_DEGREE = r"[1-9]\d{0,4}"
_RUNG = re.compile(f"({_DEGREE})x({_DEGREE})")
MODE_PATTERN = f"^(base|shift|{_DEGREE}x{_DEGREE})$"
PIN_PATTERN = f"^(table|auto|base|shift|{_DEGREE}x{_DEGREE})$"

# How one step runs: BASE = (sp, tp) of the plan, SHIFT = full TP over all sp*tp ranks of a stage,
# or a rung between them, such as "4x2". A name rather than degrees, so that it means the same in a
# document whose plan stands elsewhere; a plain string when it runs, so that whatever stores or
# sends strings takes it. What others wrote goes through ``read_mode``.
Mode = NewType("Mode", str)
BASE, SHIFT = Mode("base"), Mode("shift")
ENDS = (BASE, SHIFT)

# What decides the mode of a step on a Shift plan. TABLE: the times measured when the ranks started;
# AUTO: the thresholds; the name of a mode holds that one. Read by ``read_pin``.
ModePin = NewType("ModePin", str)
TABLE, AUTO = ModePin("table"), ModePin("auto")
PIN_RULES = (TABLE, AUTO)

KNOWN_MODES = f"{', '.join(ENDS)} and rungs such as 4x2"
KNOWN_PINS = f"{', '.join((*PIN_RULES, *ENDS))} and rungs such as 4x2"


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

    @property
    def mode(self) -> Mode:
        """Its name between base and shift."""
        return Mode(str(self))

    def __str__(self) -> str:
        return f"{self.sp}x{self.tp}"


def is_rung(text: str) -> bool:
    """Whether ``text`` has the form of a rung, such as ``4x2``."""
    return _RUNG.fullmatch(text) is not None


def read_mode(value: object) -> Mode:
    """A mode by name.

    Raises:
        ValueError: neither an end nor the form of a rung, with what is known.
    """
    if isinstance(value, str) and (value in ENDS or is_rung(value)):
        return Mode(str(value))
    raise ValueError(f"{value!r}; known: {KNOWN_MODES}")


def read_pin(value: object) -> ModePin:
    """What decides the mode of a step, by name.

    Raises:
        ValueError: neither a rule nor a mode, with what is known.
    """
    if isinstance(value, str) and (value in (*PIN_RULES, *ENDS) or is_rung(value)):
        return ModePin(str(value))
    hint = did_you_mean(str(value), (*PIN_RULES, *ENDS))
    raise ValueError(f"{value!r}; known: {KNOWN_PINS}{hint}")


def pinned_mode(pin: ModePin) -> Mode | None:
    """The mode that ``pin`` holds; None where each step has its own."""
    return None if pin in PIN_RULES else Mode(pin)
