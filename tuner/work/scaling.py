"""How far tensor parallelism pays: Amdahl's law by task, and the empirical optimal degree t_e.

Albireo (arXiv 2606.01927): ``A = 1/(P1 + P2 + P4 + P5 + P3/t)`` with P1 scheduling, P2 input, P3
forward, P4 sampling, P5 output as shares of a step at t = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Where one step spends its time, in seconds; only what no other step covers.

    Raises:
        TunerError: a part below 0, or nothing at all.
    """

    scheduling_s: float
    input_s: float
    forward_s: float
    sampling_s: float
    output_s: float

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or self.total_s <= 0:
            raise TunerError(f"{self}: parts of a step are at least 0 and not all 0")

    @property
    def total_s(self) -> float:
        return self.non_scalable_s + self.forward_s

    @property
    def non_scalable_s(self) -> float:
        """All but the forward pass: it is as long on any number of ranks."""
        return self.scheduling_s + self.input_s + self.sampling_s + self.output_s

    @property
    def non_scalable_share(self) -> float:
        return self.non_scalable_s / self.total_s


@dataclass(frozen=True, kw_only=True)
class Amdahl:
    """``seconds(t) = serial_s + scalable_s / t``."""

    serial_s: float
    scalable_s: float

    @classmethod
    def of_step(cls, parts: StepParts, degree: int) -> Amdahl:
        """From one step's parts at ``degree``, as if the forward pass had scaled to there."""
        return cls(serial_s=parts.non_scalable_s, scalable_s=degree * parts.forward_s)

    def seconds(self, degree: int) -> float:
        return self.serial_s + self.scalable_s / degree

    def speedup(self, degree: int) -> float:
        """A(t): how much faster a step is at ``degree`` than at 1."""
        return self.seconds(1) / self.seconds(degree)

    @property
    def serial_share(self) -> float:
        """P1 + P2 + P4 + P5: what of a step at degree 1 does not scale."""
        return self.serial_s / self.seconds(1)


def fit_amdahl(step_seconds: Mapping[int, float]) -> Amdahl:
    """The law nearest to measured steps (degree -> seconds), in relative error.

    A serial part of its own accord also holds what collectives add.

    Raises:
        TunerError: fewer than two degrees, or a degree or time that is not above 0.
    """
    if len(step_seconds) < 2 or min(step_seconds) < 1 or min(step_seconds.values()) <= 0:
        raise TunerError(f"steps {dict(step_seconds)}: Amdahl's law needs two degrees or more")
    degrees = np.array(sorted(step_seconds), dtype=np.float64)
    seconds = np.array([step_seconds[int(t)] for t in degrees])
    parts = np.column_stack([1 / seconds, 1 / (degrees * seconds)])
    serial_s, scalable_s = (float(x) for x in np.linalg.lstsq(parts, np.ones_like(seconds))[0])
    if serial_s < 0:  # faster than linear: no serial part
        ideal = 1 / (degrees * seconds)
        serial_s, scalable_s = 0.0, float(ideal.sum() / (ideal**2).sum())
    elif scalable_s < 0:
        flat = 1 / seconds
        serial_s, scalable_s = float(flat.sum() / (flat**2).sum()), 0.0
    return Amdahl(serial_s=serial_s, scalable_s=scalable_s)


def find_optimal_degree(throughput: Mapping[int, float], num_devices: int) -> int | None:
    """t_e: deploy ``num_devices / t_e`` instances of TP degree t_e.

    ``throughput`` is that of one instance at each degree (0 where the model does not fit). t_e is
    the largest degree with ``T(t) >= 2 T(t/2)`` for all t up to it, and
    ``(N/t_e) T(t_e) >= (N/t) T(t)`` for every t; None where no degree is both, or nothing runs.

    Raises:
        TunerError: degrees that are not 1, 2, 4, ... up to ``num_devices``.
    """
    degrees = sorted(throughput)
    if degrees != [2**i for i in range(len(degrees))] or not degrees or degrees[-1] > num_devices:
        raise TunerError(
            f"degrees {degrees}: t_e is defined over 1, 2, 4, ... up to {num_devices} devices"
        )
    reached = 1
    for half, whole in pairwise(degrees):
        if throughput[whole] < 2 * throughput[half]:
            break
        reached = whole
    most = max(throughput[t] / t for t in degrees)
    best = [t for t in degrees if t <= reached and throughput[t] / t == most]
    return max(best) if best and most > 0 else None


def rule_of_thumb_degree(weight_bytes: float, device_bytes: float) -> int:
    """t_e once overheads are removed: ``4 M / C``, rounded up to a power of two."""
    wanted, degree = 4 * weight_bytes / device_bytes, 1
    while degree < wanted:
        degree *= 2
    return degree
