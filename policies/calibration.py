"""How far predictions were from what was measured afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from policies.points import Estimate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``num`` predictions of one metric: the median of measured over predicted, the factor that
    90 % of them were off by at most, and the share measured inside the predicted interval."""

    num: int
    median_ratio: float
    p90_off: float
    inside_interval: float


def calibrate(pairs: Sequence[tuple[Estimate, float]]) -> Calibration | None:
    """From pairs of a prediction and what was measured; None without a usable one.

    Numbers that are not above 0 or not finite have no ratio and are left out.
    """
    usable = [
        (predicted, measured)
        for predicted, measured in pairs
        if 0 < predicted.value < math.inf and 0 < measured < math.inf
    ]
    if not usable:
        return None
    logs = [math.log(measured / predicted.value) for predicted, measured in usable]
    sizes = sorted(map(abs, logs))
    inside = sum(predicted.low <= measured <= predicted.high for predicted, measured in usable)
    return Calibration(
        num=len(usable),
        median_ratio=math.exp(median(logs)),
        p90_off=math.exp(sizes[math.ceil(0.9 * len(sizes)) - 1]),
        inside_interval=inside / len(usable),
    )
