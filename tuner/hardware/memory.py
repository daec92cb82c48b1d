"""Whether weights, activations and KV fit a device, with the numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.spec.activations import activation_bytes
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from tuner.hardware.device import DeviceSpec
from tuner.hardware.precision import KvFormat, Precision

GIB = 2**30
# What a rank takes outside its tensors while it starts: alone, and with peers to talk to. vLLM 0.11
# on H100 logs 0.13 and 0.54 to 0.55 GiB (llm-d/llm-d-benchmark, config_explorer).
RUNTIME_BYTES = int(0.13 * GIB)
RUNTIME_BYTES_AMONG_RANKS = int(0.55 * GIB)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the fullest rank of a plan whose steps are as full as ``caps`` allow.

    ``usable_bytes`` is the share of the memory that a system takes; CUDA context, graphs and
    fragmentation live in the rest. KV gets what ``weight_bytes``, ``activation_bytes`` and
    ``runtime_bytes`` (communication buffers) leave of it, as vLLM sizes its cache.
    ``needed_kv_tokens`` is what one request may hold.
    """

    plan: ParallelPlan
    caps: Caps
    usable_bytes: float
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    kv_bytes_per_token: int
    needed_kv_tokens: int

    @property
    def kv_bytes(self) -> float:
        """Room left for KV; negative when the rest alone does not fit."""
        return self.usable_bytes - self.weight_bytes - self.activation_bytes - self.runtime_bytes

    @property
    def kv_tokens(self) -> int:
        return max(0, int(self.kv_bytes // self.kv_bytes_per_token))

    @property
    def needed_kv_bytes(self) -> int:
        return self.needed_kv_tokens * self.kv_bytes_per_token

    @property
    def reason(self) -> str | None:
        """Why the plan does not fit, with the numbers and a way out; None when it does."""
        if self.kv_tokens >= self.needed_kv_tokens:
            return None
        caps = self.caps
        return (
            f"needs {_gb(self.weight_bytes)} GB of weights per rank, "
            f"{_gb(self.activation_bytes)} GB of activations in a step of "
            f"max_num_batched_tokens={caps.max_num_batched_tokens} and "
            f"max_num_seqs={caps.max_num_seqs}, {_gb(self.runtime_bytes)} GB of communication "
            f"buffers and {_gb(self.needed_kv_bytes)} GB of KV for one request of "
            f"{self.needed_kv_tokens} tokens; {_gb(self.usable_bytes)} GB are usable; "
            f"{self._way_out}"
        )

    @property
    def _way_out(self) -> str:
        shard = "use more tensor or pipeline ranks or a narrower number format"
        if self.kv_bytes + self.activation_bytes < self.needed_kv_bytes:
            return shard
        return f"lower max_num_batched_tokens or max_num_seqs, or {shard}"


def estimate_memory(
    device: DeviceSpec,
    model: ModelConfig,
    plan: ParallelPlan,
    dtype: DType | Precision,
    *,
    caps: Caps,
    samples_in_parallel: bool = False,
    needed_kv_tokens: int = 1,
    kv: KvFormat = KvFormat.AUTO,
) -> MemoryEstimate:
    """Weights, activations (:func:`activation_bytes`) and KV of the fullest rank against the
    device's usable memory."""
    precision = Precision.of(dtype)
    return MemoryEstimate(
        plan=plan,
        caps=caps,
        usable_bytes=device.usable_bytes,
        weight_bytes=weight_bytes_per_rank(model, plan, precision),
        activation_bytes=activation_bytes(
            model,
            plan,
            caps,
            num_bytes=precision.dtype.num_bytes,
            samples_in_parallel=samples_in_parallel,
        ),
        runtime_bytes=RUNTIME_BYTES if plan.replica_size == 1 else RUNTIME_BYTES_AMONG_RANKS,
        kv_bytes_per_token=int(
            model.kv_bytes_per_token(plan, precision.dtype) * kv.share_of(precision.dtype)
        ),
        needed_kv_tokens=needed_kv_tokens,
    )


def weight_bytes_per_rank(model: ModelConfig, plan: ParallelPlan, precision: Precision) -> int:
    """Bytes of the matrices on the fullest rank; fp8 and int4 leave embedding and head in two
    bytes."""
    in_dtype = model.weight_bytes_per_rank(plan, precision.dtype)
    layers = replace(model, vocab_size=0).weight_bytes_per_rank(plan, precision.dtype)
    narrow = int(layers * precision.weight_bytes / precision.dtype.num_bytes)
    return in_dtype - layers + narrow


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}"
