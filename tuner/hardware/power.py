"""Watts of a device by what it does: idle, bound by memory (decode) or by compute (prefill).

An estimate from data sheets and published shares of them; good for comparing plans and policies
on one kind of device, not for a bill.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class PowerSpec:
    """Watts of one device. ``idle_w`` with a loaded model and no work; ``memory_bound_w`` in
    decode; ``compute_bound_w`` in large prefill."""

    idle_w: float
    memory_bound_w: float
    compute_bound_w: float
    source: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.idle_w <= self.memory_bound_w <= self.compute_bound_w:
            raise TunerError(
                f"power: 0 <= idle_w={self.idle_w} <= memory_bound_w={self.memory_bound_w} <= "
                f"compute_bound_w={self.compute_bound_w} does not hold"
            )


def compute_share(num_prefill_tokens: int, num_decode_tokens: int) -> float:
    """Share of a step's tokens that are prefill: where its power lies between decode's and
    prefill's. A coarse rule; steps are short against the time in which power settles."""
    tokens = num_prefill_tokens + num_decode_tokens
    return num_prefill_tokens / tokens if tokens else 0.0
