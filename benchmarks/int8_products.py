"""int8 products of a 158 M Llama on one CPU rank: the compiled ones against torch's and bfloat16.

    python -m benchmarks.int8_products [--threads N] [--rounds N] [--dtype bfloat16]

All ways take turns in one process, as in :mod:`benchmarks.cpu_products`, with the head among the
products: ``--quantization int8`` makes it int8 too.
"""

from __future__ import annotations

import argparse
import datetime
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.cpu_products import FEW_ROWS, FFN, HIDDEN, LAYERS, QKV, ROWS, least_s
from benchmarks.quiet import OtherPrograms
from engine.parallel.int8 import PackedInt8, Way, best_way
from engine.parallel.packed import pack
from engine.parallel.quantised import quantise
from engine.spec.quantisation import WeightFormat
from tuner.spec.machine import this_machine

VOCABULARY = 16_384
SHAPES = [(QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN)] * LAYERS
SHAPES += [(VOCABULARY, HIDDEN)]
PACKED = "16 or 32 bits, packed"
TITLES = {Way.TILES: "compiled, AMX", Way.VECTORS: "compiled, VNNI", Way.FLOATS: "compiled, floats"}
MOST_ROWS = {TITLES[Way.FLOATS]: 64, "_weight_int8pack_mm": 64}
Product = Callable[[Tensor], Tensor]


def products_of(weight: Tensor) -> dict[str, Product]:
    """The product with one ``weight[outputs, inputs]`` in every way that its dtype allows."""
    found = quantise(weight, WeightFormat.INT8)
    scales, best = found.scales[0].to(weight.dtype), TITLES[best_way()]
    ways: dict[str, Product] = {
        PACKED: pack(weight),
        **{name: PackedInt8(found, way=way) for way, name in TITLES.items() if way <= best_way()},
        **{f"{best}, {n} byte{'s' * (n > 1)}": PackedInt8(found, digits=n) for n in (3, 2, 1)},
        "_weight_int8pack_mm": partial(_int8pack, values=found.values, scales=scales),
        # It rounds the rows too, with one scale for all: another accuracy, here for its speed.
        "qlinear_pointwise, rounds rows": _qlinear(found.values, found.scales[0]),
    }
    return ways


def _int8pack(x: Tensor, *, values: Tensor, scales: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten._weight_int8pack_mm(x, values, scales)
    return found


def _qlinear(values: Tensor, scales: Tensor) -> Product:
    packed = torch.ops.onednn.qlinear_prepack(values, [FEW_ROWS, values.shape[1]])
    zeros = torch.zeros(len(values), dtype=torch.int64)

    def multiply(x: Tensor) -> Tensor:
        # The row's range is taken as known: this flatters it.
        rounded = (x * 25.0).add_(128.5).to(torch.uint8)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 0.04, 128, packed, scales, zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )
        return found

    return multiply


def _run(products: list[Product], xs: list[Tensor]) -> None:
    for product, x in zip(products, xs, strict=True):
        product(x)


def measure(options: argparse.Namespace) -> Iterator[str]:
    """The lines of one dtype's table, as they are found."""
    dtype: torch.dtype = getattr(torch, options.dtype)
    weights = [products_of(torch.randn(shape).mul_(0.02).to(dtype)) for shape in SHAPES]
    names = list(weights[0])
    yield f"| rows | {' | '.join(f'{name}, ms' for name in names)} | compiled is |"
    yield "|---" * (len(names) + 2) + "|"
    for rows in options.rows:
        kinds = {width: torch.randn(rows, width).to(dtype) for width in (HIDDEN, FFN)}
        xs = [kinds[inputs] for _, inputs in SHAPES]
        calls = {
            name: partial(_run, [ways[name] for ways in weights], xs)
            for name in names
            if rows <= MOST_ROWS.get(name, rows)
        }
        rounds = options.rounds if rows <= FEW_ROWS else max(2, options.rounds // 8)
        seconds = least_s(calls, rounds=rounds, threads=options.threads)
        times = [f"{1e3 * seconds[name]:.1f}" if name in seconds else "-" for name in names]
        ratio = seconds[PACKED] / seconds[TITLES[best_way()]]
        yield f"| {rows} | {' | '.join(times)} | {ratio:.2f}x as fast |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with torch.inference_mode(), OtherPrograms() as others:
            for line in measure(options):
                print(line, flush=True)
    clock = "CPU time" if options.threads == 1 else "wall time"
    print(
        f"\n{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {this_machine()}; other programs "
        f"took {others.share:.0%}; {options.dtype}, {options.threads} threads, least {clock} of "
        f"{options.rounds} rounds in turn"
    )


if __name__ == "__main__":
    main()
