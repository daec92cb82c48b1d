"""Whether weights and KV fit a device, with the numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.config import DType, ModelConfig
from engine.plan import ParallelPlan, list_plans
from tuner.errors import TunerError
from tuner.hardware.device import DeviceSpec, Hardware
from tuner.hardware.precision import Precision


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
    dtype: DType | Precision,
    *,
    needed_kv_tokens: int = 1,
) -> MemoryEstimate:
    """Weights and KV of the fullest rank against the device's usable memory."""
    precision = Precision.of(dtype)
    return MemoryEstimate(
        plan=plan,
        usable_bytes=device.usable_bytes,
        weight_bytes=weight_bytes_per_rank(model, plan, precision),
        kv_bytes_per_token=model.kv_bytes_per_token(plan, precision.dtype),
        needed_kv_tokens=needed_kv_tokens,
    )


def weight_bytes_per_rank(model: ModelConfig, plan: ParallelPlan, precision: Precision) -> int:
    """Bytes of the matrices on the fullest rank; fp8 leaves embedding and head in two bytes."""
    in_dtype = model.weight_bytes_per_rank(plan, precision.dtype)
    layers = replace(model, vocab_size=0).weight_bytes_per_rank(plan, precision.dtype)
    narrow = layers * precision.weight_bytes // precision.dtype.num_bytes
    return in_dtype - layers + narrow


def list_memory(
    hardware: Hardware, model: ModelConfig, dtype: DType | Precision, *, needed_kv_tokens: int = 1
) -> list[MemoryEstimate]:
    """Memory of every plan the model can run on the hardware, whether it fits or not."""
    return [
        estimate_memory(hardware.device, model, plan, dtype, needed_kv_tokens=needed_kv_tokens)
        for plan in list_plans(model, hardware.count)
    ]


def num_device_kv_blocks(
    device: DeviceSpec,
    model: ModelConfig,
    plan: ParallelPlan,
    dtype: DType | Precision,
    block_size: int,
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
