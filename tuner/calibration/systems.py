"""Which measurement files describe which device, and the works they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.calibration.readers import Columns, read_decode, read_gemm, read_prefill
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import FloatArray, Peaks, Work, decode_work, gemm_work, prefill_work

LICENCE = (
    "operators/: NVIDIA AIConfigurator (Apache-2.0); vidur/: Microsoft Vidur (MIT). Fitted "
    "coefficients only; no measurement is copied."
)
# Precision of the file -> number format of the data sheet, and bytes of one operand.
PRECISIONS = {"bf16": ("bfloat16", 2), "fp8": ("float8", 1)}


@dataclass(frozen=True, kw_only=True)
class System:
    """File names of one device's measurements. ``small`` and ``send`` may be another device's."""

    device: str
    operators: str
    precisions: tuple[str, ...]
    small: tuple[str, ...]
    send: str
    across_nodes: str | None = None
    borrowed: tuple[str, ...] = ()


SYSTEMS = (
    System(
        device="a100",
        operators="a100_sxm",
        precisions=("bf16",),
        small=("a100_llama-2-70b", "a100_llama-3-70b"),
        send="a100_dgx_send_recv",
        across_nodes="a100_dgx_all_reduce",
    ),
    System(
        device="h100",
        operators="h100_sxm",
        precisions=("bf16", "fp8"),
        small=("h100_llama-2-70b",),
        send="h100_dgx_send_recv",
    ),
    System(
        device="h200",
        operators="h200_sxm",
        precisions=("bf16", "fp8"),
        small=("h100_llama-2-70b",),
        send="h100_dgx_send_recv",
        # The same compute die: these operations are far from the memory's bandwidth on both.
        borrowed=("small operations of h100", "point to point of h100"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Calls of one kind of operator; ``groups`` names what a held-out fold takes out whole."""

    name: str
    work: Work
    seconds: FloatArray
    groups: npt.NDArray[np.int64]
    columns: Columns

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    def where(self, mask: npt.NDArray[np.bool_]) -> Measured:
        """The calls of ``mask`` only."""
        return Measured(
            name=self.name,
            work=self.work.where(mask),
            seconds=self.seconds[mask],
            groups=self.groups[mask],
            columns=self.columns.where(mask),
        )


def peaks(device: DeviceSpec, dtype: str) -> Peaks:
    """The data sheet's peaks in one number format."""
    return Peaks(
        flops_per_s=device.dense_flops_per_s[dtype],
        bytes_per_s=device.memory_bytes_per_s,
        num_sms=device.num_sms,
    )


def measured_gemm(data: Path, system: System, device: DeviceSpec, precision: str) -> Measured:
    """Products, grouped by their weights (n, k)."""
    columns = read_gemm(data, system.operators, precision)
    m, n, k = columns.values.T
    dtype, operand_bytes = PRECISIONS[precision]
    return Measured(
        name=f"gemm.{dtype}",
        work=gemm_work(peaks(device, dtype), m, n, k, operand_bytes=operand_bytes),
        seconds=columns.seconds,
        groups=(n * 1_000_000 + k).astype(np.int64),
        columns=columns,
    )


def measured_prefill(data: Path, system: System, device: DeviceSpec) -> Measured:
    """Whole prompts, grouped by head shape (query heads, KV heads)."""
    columns = read_prefill(data, system.operators)
    seqs, queries, heads, kv_heads = columns.values.T
    work = prefill_work(
        peaks(device, "bfloat16"),
        seqs=seqs,
        queries=queries,
        prefix=np.zeros_like(queries),
        heads=heads,
        kv_heads=kv_heads,
    )
    return _attention("prefill", work, columns)


def measured_decode(data: Path, system: System, device: DeviceSpec) -> Measured:
    """Single query tokens, grouped by head shape."""
    columns = read_decode(data, system.operators)
    seqs, context, heads, kv_heads = columns.values.T
    work = decode_work(
        peaks(device, "bfloat16"), seqs=seqs, context=context, heads=heads, kv_heads=kv_heads
    )
    return _attention("decode", work, columns)


def _attention(name: str, work: Work, columns: Columns) -> Measured:
    heads, kv_heads = columns.values[:, 2], columns.values[:, 3]
    return Measured(
        name=name,
        work=work,
        seconds=columns.seconds,
        groups=(heads * 1000 + kv_heads).astype(np.int64),
        columns=columns,
    )


def measured_operators(data: Path, system: System, device: DeviceSpec) -> list[Measured]:
    """Every kind of operator measured on ``device``."""
    return [
        *(measured_gemm(data, system, device, precision) for precision in system.precisions),
        measured_prefill(data, system, device),
        measured_decode(data, system, device),
    ]
