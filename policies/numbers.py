"""Numbers for readers: three significant digits and never an exponent."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from policies.constraint import Op

DIGITS = 3
EXACT_DIGITS = 17


def short(value: float) -> str:
    """``value`` with three significant digits, as in 0.0932, 147, 4870."""
    return _rounded(value, ROUND_HALF_EVEN)


def short_beside(value: float, bound: float) -> str:
    """``value`` with as many digits as show on which side of ``bound`` it lies, at least three."""
    for digits in range(DIGITS, EXACT_DIGITS):
        text = _rounded(value, ROUND_HALF_EVEN, digits)
        if _side(float(text), bound) == _side(value, bound):
            return text
    return repr(value)


def share_text(value: float) -> str:
    """A share with four digits, or as many as show that it is not all: 0.99996 is no 1."""
    text = f"{value:.4f}"
    return short_beside(value, 1.0) if value != 1 and float(text) == 1 else text


def short_bound(value: float, op: Op) -> str:
    """The next bound of three significant digits that whatever meets ``value`` meets as well."""
    return _rounded(value, ROUND_CEILING if op is Op.AT_MOST else ROUND_FLOOR)


def _side(value: float, bound: float) -> int:
    return (value > bound) - (value < bound)


def _rounded(value: float, way: str, digits: int = DIGITS) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exact = Decimal(value)
    last = exact.adjusted() - digits + 1
    rounded = exact.quantize(Decimal((0, (1,), last)), rounding=way)
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(number: int, noun: str, several: str = "") -> str:
    """1 device, 2 devices; ``several`` where an s does not do."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
