"""Measurement files of an invented device, written in the published formats."""

from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path

from tuner.calibration.systems import System

SYSTEM = System(
    device="h100", operators="x", precisions=("bf16",), small=("x",), send="x_send_recv"
)
LATENCY_MS = 0.004
FLOPS_PER_MS = 6e11
BYTES_PER_MS = 2.5e9
LINK_BYTES_PER_MS = 3e8
TP = (1, 2, 4, 8)
PAIRS = [(h, kv) for h in (4, 8, 16, 32) for kv in (1, 2, 4, 8) if kv <= h]


def write_world(folder: Path) -> Path:
    """All files that :data:`SYSTEM` names; every time follows one simple law."""
    sizes = [*(2**i for i in range(9, 15)), 768, 1536, 3072, 6144]
    rows = [1, 16, 256, 1024, 4096]
    _write(folder, "operators/x_gemm_bf16", "m,n,k,latency_ms",
           [(m, n, k, _law(2.0 * m * n * k, 2.0 * (n * k + m * k + m * n)))
            for m, n, k in product(rows, sizes, sizes)])  # fmt: skip
    _write(folder, "operators/x_context_attention_bf16_hd128",
           "batch_size,isl,num_heads,num_key_value_heads,latency_ms",
           [(b, s, h, kv, _law(256.0 * b * s * s * h, 512.0 * b * s * (h + kv)))
            for b, s, (h, kv) in product((1, 4, 16), (16, 256, 1024, 4096), PAIRS)])  # fmt: skip
    _write(folder, "operators/x_generation_attention_bf16_hd128",
           "batch_size,step,num_heads,num_key_value_heads,latency_ms",
           [(b, s, h, kv, _law(512.0 * b * s * h, 512.0 * b * (h + s * kv)))
            for b, s, (h, kv) in product((1, 16, 256, 1024), (1, 63, 1023, 16383),
                                         PAIRS)])  # fmt: skip
    messages = [2**i for i in range(7, 28)]
    _write(folder, "operators/x_custom_allreduce_bf16",
           "kernel_source,num_gpus,message_size,latency_ms",
           [(f"vLLM_custom_{launch}", ranks, size, LATENCY_MS * cost + 2 * size / LINK_BYTES_PER_MS)
            for (launch, cost), ranks, size in product((("graph", 1), ("eager", 5)), TP[1:],
                                                       messages)])  # fmt: skip
    _write(folder, "operators/x_nccl_half", "op_name,num_gpus,message_size,latency_ms",
           [(op, ranks, size, 2 * LATENCY_MS + 2 * size / LINK_BYTES_PER_MS)
            for op, ranks, size in product(("all_reduce", "all_gather", "alltoall"), TP[1:],
                                           messages)])  # fmt: skip
    _write(folder, "vidur/x_send_recv",
           "num_workers,size,devices_per_node,time_stats.send_recv.median",
           [(2, size, per_node, LATENCY_MS + size / LINK_BYTES_PER_MS * (3 - per_node))
            for size, per_node in product(messages, (1, 2))])  # fmt: skip
    small = ("input_layernorm", "attn_rope", "mlp_act", "emb")
    _write(folder, "vidur/x_mlp",
           "num_tokens,num_tensor_parallel_workers,n_embd,n_expanded_embd,n_head,n_kv_head,"
           + ",".join(f"time_stats.{name}.median" for name in small),
           [(n, tp, 8192, 28672, 64, 8, *(0.005 + n * w / tp / BYTES_PER_MS
                                          for w in (32768, 36864, 172032, 32768)))
            for n, tp in product([2**i for i in range(13)], TP)])  # fmt: skip
    return folder


def _law(flops: float, num_bytes: float) -> float:
    return LATENCY_MS + max(flops / FLOPS_PER_MS, num_bytes / BYTES_PER_MS)


def _write(folder: Path, name: str, head: str, rows: list[tuple[object, ...]]) -> None:
    path = folder / f"{name}.csv.gz"
    path.parent.mkdir(exist_ok=True)
    lines = [head, *(",".join(map(str, row)) for row in rows)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
