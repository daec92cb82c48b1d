"""All-reduces among a number of devices that nobody measured, carried over from other numbers.

The law is the algorithms': vLLM's kernel reads every peer's tensor at once while it is small,
scatters and gathers in two rounds up to 8 MiB, and leaves more to NCCL (csrc/custom_all_reduce.cuh,
vllm/distributed/device_communicators/custom_all_reduce.py). NCCL moves 2(n-1)/n of a tensor per
device round a ring; where the switch can multicast and all devices behind it take part, 1 + 1/n at
85 % of the ring's speed (NVLS; src/graph/tuning.cc).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tuner.calibration.curve_fit import OUTLIER_LOG
from tuner.calibration.links import LIBRARY_BYTES, ONE_SHOT_BYTES, Series
from tuner.hardware.physics import FloatArray

MULTICAST_RANKS = 8
MULTICAST_EFFICIENCY = 0.85
PRIOR = 0.05  # how much a log of a parameter is held to its start


@dataclass(frozen=True, kw_only=True)
class AllReduceLaw:
    """Seconds of a call, of each further device, and bytes per second of the three algorithms."""

    call_s: float
    hop_s: float
    one_shot_bytes_per_s: float
    two_shot_bytes_per_s: float
    library_s: float
    library_bytes_per_s: float

    def seconds(self, ranks: int, num_bytes: FloatArray, *, has_multicast: bool) -> FloatArray:
        """f8[R] of messages f8[R]."""
        ring = 2 * (ranks - 1) / ranks
        is_multicast = has_multicast and ranks >= MULTICAST_RANKS
        moved = (1 + 1 / ranks) / MULTICAST_EFFICIENCY if is_multicast else ring
        hops_s = self.hop_s * ranks
        one = self.call_s + hops_s + (ranks - 1) * num_bytes / self.one_shot_bytes_per_s
        two = self.call_s + 2 * hops_s + ring * num_bytes / self.two_shot_bytes_per_s
        library = self.library_s + hops_s + moved * num_bytes / self.library_bytes_per_s
        limit = ONE_SHOT_BYTES.get(ranks, LIBRARY_BYTES)
        own = np.where(num_bytes < limit, one, two)
        return np.asarray(np.where(num_bytes < LIBRARY_BYTES, own, library))


START = AllReduceLaw(
    call_s=4e-6,
    hop_s=1e-7,
    one_shot_bytes_per_s=2e11,
    two_shot_bytes_per_s=2e11,
    library_s=2e-5,
    library_bytes_per_s=3e11,
)


def fit_all_reduce_law(series: list[Series], *, has_multicast: bool) -> AllReduceLaw:
    """Robust least squares of the log error over several numbers of ranks."""
    start = np.log(astuple(START))

    def law(logs: FloatArray) -> AllReduceLaw:
        names = AllReduceLaw.__dataclass_fields__
        return AllReduceLaw(**dict(zip(names, map(float, np.exp(logs)), strict=True)))

    def errors(logs: FloatArray) -> FloatArray:
        fitted = law(logs)
        found = [
            np.log(fitted.seconds(s.ranks, s.num_bytes, has_multicast=has_multicast) / s.seconds)
            for s in series
        ]
        return np.concatenate([*found, PRIOR * (logs - start)])

    return law(least_squares(errors, start, loss="soft_l1", f_scale=OUTLIER_LOG).x)


def carried_over(
    ranks: int, num_bytes: FloatArray, others: list[Series], *, has_multicast: bool
) -> FloatArray:
    """Seconds f8[R] among ``ranks`` devices, from series of other numbers of devices: by their law,
    corrected by its error on them (the nearer number counts more).
    """
    law = fit_all_reduce_law(others, has_multicast=has_multicast)

    def missed(series: Series) -> FloatArray:
        curve = series.fit().curve
        seconds = np.array([curve.seconds(size) for size in num_bytes])
        known = law.seconds(series.ranks, num_bytes, has_multicast=has_multicast)
        return np.asarray(np.log(seconds / known))

    nearness: npt.NDArray[np.float64] = np.array(
        [1.0 / abs(np.log(ranks / series.ranks)) for series in others]
    )
    left = np.average([missed(series) for series in others], axis=0, weights=nearness)
    seconds = law.seconds(ranks, num_bytes, has_multicast=has_multicast)
    return np.asarray(seconds * np.exp(left))
