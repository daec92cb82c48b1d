"""Whether weights and KV fit a device, with the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import DType, ModelConfig
from engine.plan import ParallelPlan
from tuner.errors import TunerError
from tuner.hardware.device import DeviceSpec


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the fullest rank of a plan. ``needed_kv_tokens`` is what one request may hold."""

    plan: ParallelPlan
    usable_bytes: float
    weight_bytes: int
    kv_bytes_per_token: int
    needed_kv_tokens: int

    @property
    def kv_bytes(self) -> float:
        """Room left for KV; negative when the weights alone do not fit."""
        return self.usable_bytes - self.weight_bytes

    @property
    def kv_tokens(self) -> int:
        return max(0, int(self.kv_bytes // self.kv_bytes_per_token))

    @property
    def reason(self) -> str | None:
        """Why the plan does not fit, with the numbers; None when it does."""
        if self.kv_tokens >= self.needed_kv_tokens:
            return None
        return (
            f"needs {_gb(self.weight_bytes)} GB of weights per rank and "
            f"{_gb(self.needed_kv_tokens * self.kv_bytes_per_token)} GB of KV for one request of "
            f"{self.needed_kv_tokens} tokens; {_gb(self.usable_bytes)} GB are usable"
        )


def estimate_memory(
    device: DeviceSpec,
    model: ModelConfig,
    plan: ParallelPlan,
    dtype: DType,
    *,
    needed_kv_tokens: int = 1,
) -> MemoryEstimate:
    """Weights and KV of the fullest rank against the device's usable memory."""
    return MemoryEstimate(
        plan=plan,
        usable_bytes=device.usable_bytes,
        weight_bytes=model.weight_bytes_per_rank(plan, dtype),
        kv_bytes_per_token=model.kv_bytes_per_token(plan, dtype),
        needed_kv_tokens=needed_kv_tokens,
    )


def num_device_kv_blocks(
    device: DeviceSpec, model: ModelConfig, plan: ParallelPlan, dtype: DType, block_size: int
) -> int:
    """KV blocks each rank has room for.

    Raises:
        TunerError: not one block fits, with the numbers.
    """
    estimate = estimate_memory(device, model, plan, dtype, needed_kv_tokens=block_size)
    if estimate.reason is not None:
        raise TunerError(f"plan {plan} on {device.name}: {estimate.reason}")
    return estimate.kv_tokens // block_size


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}"
