"""What a step launches, counted without a GPU: ``python -m benchmarks.gpu_check.launches``.

The layers of a stage run on torch's meta device, whose tensors have a dtype and a shape but no
memory, with the tables that a CUDA graph is captured over. Triton's kernels are counted instead of
launched, and so is every operation of torch that is no view and no allocation. The bytes of a
launch are those of the tensors that it is given and makes, but for caches.

An error is whatever could not be captured: work that waits for the device or has a shape that
depends on data, and an operation with a tensor of the host.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from benchmarks.gpu_check.model import BLOCK_SIZE, PRESET, SOLO, random_stage, write_config
from benchmarks.gpu_check.steps import DECODES
from engine.kernels.attention_plan import CacheShape
from engine.kernels.gpu.layer import TritonKernels
from engine.kernels.gpu.tables import empty_tables
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.layer import HeadShape
from engine.models.batch import PickedRows
from engine.models.llama import LlamaStage
from engine.parallel.mesh import solo_groups
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE

# It has shapes and dtypes, no memory, and is not the host; torch without CUDA can index it.
DEVICE = torch.device("meta")
DTYPE = torch.bfloat16
NUM_BLOCKS = 64
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
    """Launches of a step: of each layer by name, of embedding and ``num_layers`` layers (which are
    one in a CUDA graph), and of final norm and head behind them. ``layer_bytes`` is what a layer
    moves beside the cache."""

    per_layer: dict[str, int]
    layer_bytes: int
    num_layers: int
    per_step: int
    tail: int


@dataclass(kw_only=True, eq=False)
class Tally:
    """Launches by name, and the bytes of their tensors but those ``apart``."""

    apart: Sequence[torch.Tensor] = ()
    launches: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0

    def add(self, name: str, tensors: Iterable[object]) -> None:
        self.launches[name] += 1
        apart = {id(tensor) for tensor in self.apart}
        found = {id(x): x.nbytes for x in tensors if isinstance(x, torch.Tensor)}
        self.num_bytes += sum(size for key, size in found.items() if key not in apart)


class _Counting(TorchDispatchMode):
    """Counts torch's operations that launch something."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in REFUSED or (name == "index" and _has_mask(args)):
            raise AssertionError(f"{name} in a step waits for the device")
        result = func(*args, **(kwargs or {}))
        tensors = tree_leaves((args, kwargs, result))
        if any(_is_of_host(found) for found in tensors):
            raise AssertionError(f"{name} in a step has a tensor of the host")
        is_view = any(
            found.alias_info is not None and not found.alias_info.is_write
            for found in func._schema.returns
        )
        if not is_view and name not in ALLOCATIONS:
            self._tally.add(name, tensors)
        return result


def _has_mask(args: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in args[1])


def _is_of_host(found: object) -> bool:
    return isinstance(found, torch.Tensor) and found.device != DEVICE


@contextmanager
def counted(tally: Tally) -> Iterator[None]:
    """Count into ``tally`` whatever goes through inside.

    Raises:
        AssertionError: an operation could not be captured.
    """
    run = JITFunction.run

    def count(kernel: JITFunction, *args: Any, **kwargs: Any) -> None:
        tally.add(kernel.__name__.strip("_"), (*args, *kwargs.values()))

    JITFunction.run = count
    try:
        with _Counting(tally):
            yield
    finally:
        JITFunction.run = run


def count_step(model: ModelConfig, num_rows: int, *, has_prefill: bool) -> tuple[Tally, Tally]:
    """Embedding and layers of a step of ``num_rows`` tokens, with or without longer runs of new
    ones; and final norm and head behind them."""
    cache = CacheShape(
        block_size=BLOCK_SIZE,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=DTYPE,
        device=DEVICE,
    )
    tail = Tally()
    with torch.inference_mode():
        caches = [_cache(cache) for _ in range(model.num_layers)]
        stage, kernels = _stage(model, cache, caches)
        apart = [part for each in caches for part in (each.keys, each.values)]
        layers = Tally(apart=[kernels.rope, *apart])
        shape = kernels.graph_shape(num_rows, has_prefill=has_prefill)
        attention = kernels.over(empty_tables(shape, NUM_BLOCKS, DEVICE))
        ids = torch.zeros(num_rows, dtype=torch.int64, device=DEVICE)
        with counted(layers):
            x = stage.forward(stage.embed(ids, BASE), BASE, attention)
        with counted(tail):
            picked = PickedRows(count=num_rows, rows=None, exchange=None)
            stage.logit_shard(stage.collect(x, picked))
    return layers, tail


def _cache(shape: CacheShape) -> LayerCache:
    return allocate_cache(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=DTYPE,
        device=DEVICE,
    )


def _stage(
    model: ModelConfig, cache: CacheShape, caches: Sequence[LayerCache]
) -> tuple[LlamaStage, TritonKernels]:
    groups = solo_groups()
    weights = random_stage(model=model, dtype=DTYPE, device=DEVICE, groups=groups)
    kernels = TritonKernels(
        shape=HeadShape(cache=cache, num_q=model.num_heads, rms_eps=model.rms_eps),
        rope=torch.zeros(NUM_BLOCKS * BLOCK_SIZE, model.head_dim, device=DEVICE),
    )
    stage = LlamaStage(
        model=model,
        plan=SOLO,
        weights=weights,
        caches=tuple(caches),
        groups=groups,
        kernels=kernels,
        device=DEVICE,
    )
    return stage, kernels


def count_launches(
    model: ModelConfig, *, num_layers: int, num_rows: int = 4, has_prefill: bool = False
) -> Launches:
    """Launches of a step of ``num_layers`` layers of the shape of ``model``: counted with one layer
    and with two, since all are alike.
    """
    (one, tail), (two, _) = (
        count_step(replace(model, num_layers=count), num_rows, has_prefill=has_prefill)
        for count in (1, 2)
    )
    per_layer = two.launches - one.launches
    return Launches(
        per_layer=dict(per_layer),
        layer_bytes=two.num_bytes - one.num_bytes,
        num_layers=num_layers,
        per_step=one.launches.total() + (num_layers - 1) * per_layer.total(),
        tail=tail.launches.total(),
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = write_config(Path(folder), PRESET)
        found = [count_launches(model, num_layers=80, num_rows=rows) for rows, _ in DECODES]
    json.dump([asdict(each) for each in found], sys.stdout)


if __name__ == "__main__":
    main()
