"""What a request may ask of its own latency, and whether it got that (attainment.v1)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Header
from pydantic import BeforeValidator, Field, WithJsonSchema

from engine.spec.request import FinishReason

MAX_SLO_MS = 86_400_000
# Objectives are rounded up to a step of these ladders, so that clients cannot make more than 89
# classes to count, whatever they ask for.
TTFT_STEPS_MS = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
TPOT_STEPS_MS = (5, 10, 20, 50, 100, 200, 500)

# A header is text: plain digits, as every client writes them.
DECIMAL = r"^[0-9]{1,8}(\.[0-9]{1,9})?$"


def _check_decimal(text: str) -> str:
    if not re.fullmatch(DECIMAL, text):
        raise ValueError("write milliseconds as in 500 or 12.5")
    return text


Milliseconds = Annotated[
    Annotated[float, Field(gt=0, le=MAX_SLO_MS), BeforeValidator(_check_decimal)] | None,
    Header(description=f"Milliseconds, above 0 and at most {MAX_SLO_MS}"),
    WithJsonSchema({"type": "string", "pattern": DECIMAL, "examples": ["500"]}),
]


class SloOutcome(StrEnum):
    """How a request with an objective ended.

    Attainment is met / (met + missed + errored). ``errored``: refused for want of room or health,
    failed, or past its deadline. ``cut``: its client went away; it is on neither side.
    """

    MET = "met"
    MISSED = "missed"
    ERRORED = "errored"
    CUT = "cut"


@dataclass(frozen=True, kw_only=True)
class Slo:
    """The most milliseconds that a request's TTFT and TPOT should take; None: any number."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def class_name(self) -> str:
        """The class it is counted in, ``ttft<=500,tpot<=50``: each bound rounded up a ladder."""
        parts = (
            _step("ttft", self.ttft_ms, TTFT_STEPS_MS),
            _step("tpot", self.tpot_ms, TPOT_STEPS_MS),
        )
        return ",".join(part for part in parts if part)

    def outcome(
        self, reason: FinishReason, *, ttft_s: float | None, tpot_s: float | None
    ) -> SloOutcome:
        """How a request ended that took this long; TPOT is None for a single token.

        A whole request without a positive TTFT is a miss.
        """
        if reason is FinishReason.ABORT:
            return SloOutcome.CUT
        if not reason.is_whole:
            return SloOutcome.ERRORED
        is_met = ttft_s is not None and ttft_s > 0 and _is_within(ttft_s, self.ttft_ms)
        is_met = is_met and (tpot_s is None or _is_within(tpot_s, self.tpot_ms))
        return SloOutcome.MET if is_met else SloOutcome.MISSED


async def read_slo(
    x_slo_ttft_ms: Milliseconds = None, x_slo_tpot_ms: Milliseconds = None
) -> Slo | None:
    """The objective in a request's headers ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``, if any."""
    if x_slo_ttft_ms is None and x_slo_tpot_ms is None:
        return None
    return Slo(ttft_ms=x_slo_ttft_ms, tpot_ms=x_slo_tpot_ms)


def _step(name: str, bound_ms: float | None, steps_ms: Sequence[int]) -> str:
    if bound_ms is None:
        return ""
    index = bisect_left(steps_ms, bound_ms)
    return f"{name}<={steps_ms[index]}" if index < len(steps_ms) else f"{name}>{steps_ms[-1]}"


def _is_within(value_s: float, bound_ms: float | None) -> bool:
    return bound_ms is None or value_s * 1e3 <= bound_ms
