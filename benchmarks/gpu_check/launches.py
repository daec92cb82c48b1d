"""What one decode step launches, counted without a GPU: ``TRITON_INTERPRET=1 python -m
benchmarks.gpu_check.launches``.

A stage with the Triton kernels runs on the CPU, the kernels in Triton's interpreter. Every
operation of torch that is no view and no allocation counts as a launch, and so does each kernel.
What would wait for the device, or have a shape that depends on data, is an error: such work cannot
be captured in a CUDA graph.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from benchmarks.gpu_check.model import BLOCK_SIZE, SOLO, random_stage, write_config
from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.gpu.layer import TritonKernels
from engine.kernels.kv_cache import allocate_cache
from engine.kernels.layer import HeadShape
from engine.models.llama import LlamaStage
from engine.models.rope import rope_table
from engine.parallel.mesh import solo_groups
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE

CPU = torch.device("cpu")
CONTEXT = 40
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
# They bring a number to the host, or have as many results as the data say.
REFUSED = (
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "equal",
)


@dataclass(frozen=True, kw_only=True)
class Launches:
    """Launches of a decode step: of each layer by name, of a whole model of ``num_layers``."""

    per_layer: dict[str, int]
    num_layers: int
    per_step: int


class _Counting(TorchDispatchMode):
    """Counts torch's operations that launch something."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in REFUSED or (name == "index" and _has_mask(args)):
            raise AssertionError(f"{name} in a step waits for the device")
        is_view = any(
            found.alias_info is not None and not found.alias_info.is_write
            for found in func._schema.returns
        )
        if not is_view and name not in ALLOCATIONS:
            self._counts[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in args[1])


@contextmanager
def counted(counts: Counter[str]) -> Iterator[None]:
    """Count into ``counts`` whatever runs inside.

    Raises:
        AssertionError: an operation would wait for the device.
    """
    inner = GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts[self.fn.__name__] += 1
        with torch.utils._python_dispatch._disable_current_modes():
            return inner(self, *args, **kwargs)

    GridExecutor.__call__ = call
    try:
        with _Counting(counts):
            yield
    finally:
        GridExecutor.__call__ = inner


def count_step(model: ModelConfig, num_seqs: int) -> Counter[str]:
    """Launches of the layers of one decode step."""
    cache = CacheShape(
        block_size=BLOCK_SIZE,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    width = -(-CONTEXT // BLOCK_SIZE)
    num_blocks = num_seqs * width
    weights = random_stage(model=model, dtype=torch.float32, device=CPU, groups=solo_groups())
    rope = rope_table(model, num_positions=CONTEXT, dtype=torch.float32, device=CPU)
    kernels = TritonKernels(
        shape=HeadShape(cache=cache, num_q=model.num_heads, rms_eps=model.rms_eps), rope=rope
    )
    stage = LlamaStage(
        model=model,
        plan=SOLO,
        weights=weights,
        caches=tuple(
            allocate_cache(
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                num_kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                dtype=torch.float32,
                device=CPU,
            )
            for _ in weights.layers
        ),
        groups=solo_groups(),
        kernels=kernels,
        device=CPU,
    )
    tables = StepTables(
        query_lens=np.ones(num_seqs, np.int64),
        context_lens=np.full(num_seqs, CONTEXT - 1, np.int64),
        block_tables=np.arange(num_blocks, dtype=np.int32).reshape(num_seqs, width),
    )
    attention = kernels.step(tables, num_seqs)
    counts: Counter[str] = Counter()
    with torch.inference_mode(), counted(counts):
        x = stage.embed(torch.arange(num_seqs), BASE)
        stage.forward(x, BASE, attention)
    return counts


def count_launches(model: ModelConfig, *, num_layers: int, num_seqs: int = 4) -> Launches:
    """Launches of a decode step of ``num_layers`` layers of the shape of ``model``: counted with
    one layer and with two, since all are alike.
    """
    one, two = (count_step(replace(model, num_layers=count), num_seqs) for count in (1, 2))
    per_layer = two - one
    return Launches(
        per_layer=dict(per_layer),
        num_layers=num_layers,
        per_step=one.total() + (num_layers - 1) * per_layer.total(),
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = write_config(Path(folder), "tiny")
        json.dump(asdict(count_launches(model, num_layers=80)), sys.stdout)


if __name__ == "__main__":
    main()
