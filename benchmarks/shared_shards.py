"""Question: what do the modes of a Shift plan pay for sharing one packed copy of their weights?

The four products of a layer on a rank of ``sp=2,shift`` and ``sp=4,shift``, by parts of a packed
whole (what is run where the compiled library reads them) and by pieces, each packed by itself (what
is run elsewhere), in base and in shift; against the same products of weights that no other mode
shares, which is what a static plan runs. All ways take turns in one process, one thread.

    python -m benchmarks.shared_shards [--rounds N] [--out benchmarks/reports/FILE.md]
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.parallel.products import PackedInputs, PackedOutputs
from engine.parallel.quantised import quantise
from engine.parallel.shards import Ranges, Shards, Weight, parts_of_whole, pieces_between_cuts
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.quantisation import WeightFormat
from tuner.spec.machine import this_machine

HIDDEN, FFN, QKV, LAYERS = 1024, 2816, 2048, 2
ROWS = (1, 8, 32, 256, 2048)
SHARES = (2, 4)
NAMES = {2: "half", 4: "quarter"}
FORMATS = ("float32", "bfloat16", "int8 of bfloat16", "int8 of float32")
Pack = Callable[..., Shards | None]
WAYS: Mapping[str, Pack] = {"pieces": pieces_between_cuts, "parts": parts_of_whole}


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Products of all layers in one mode, in the order of a step: each with the width it reads."""

    products: list[tuple[PackedOutputs | PackedInputs, int]]
    mode: Mode

    def run(self, xs: Mapping[int, Tensor]) -> None:
        """One step's products over ``xs``, an input by its width."""
        for product, width in self.products:
            product(xs[width], self.mode)

    def widths(self) -> set[int]:
        return {width for _, width in self.products}


def make_layers(form: str, pack: Pack, *, share: int, mode: Mode, of: int = 1) -> Layers | None:
    """Random layers, of whose base a shift rank has a ``share``-th; base itself an ``of``-th of the
    model. None where they are not packed so.
    """
    generator = torch.Generator().manual_seed(0)
    products: list[tuple[PackedOutputs | PackedInputs, int]] = []
    for _ in range(LAYERS):
        for outputs, inputs, is_outputs in (
            (QKV, HIDDEN, True),
            (HIDDEN, HIDDEN, False),
            (2 * FFN, HIDDEN, True),
            (HIDDEN, FFN, False),
        ):
            size = (outputs if is_outputs else inputs) // of
            shape = (size, inputs) if is_outputs else (outputs, size)
            ranges = _ranges(size, share)
            weight = _in_form(torch.randn(shape, generator=generator).mul_(0.02), form)
            shards = pack(weight, ranges, dim=0 if is_outputs else 1)
            if shards is None:
                return None
            product = PackedOutputs(shards, None) if is_outputs else PackedInputs(shards)
            products.append((product, inputs if is_outputs else len(ranges[mode])))
    return Layers(products=products, mode=mode)


def _in_form(weight: Tensor, form: str) -> Weight:
    if form.startswith("int8"):
        return quantise(weight, WeightFormat.INT8)
    return weight.to(_dtype(form))


def _dtype(form: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, form.split()[-1])
    return dtype


def _ranges(size: int, share: int) -> Ranges:
    """Base has all, shift a block within it; of four blocks the rung between has two."""
    if share == 1:
        return {BASE: range(size)}
    block = size // share
    ranges = {BASE: range(size), SHIFT: range(size - block, size)}
    return ranges | {Mode(f"1x{i + 2}"): range(i * block, size) for i in range(1, share - 1)}


def compare(ways: Mapping[str, Layers], rows: int, dtype: torch.dtype, rounds: int) -> list[str]:
    """A row of a table: of the first way the CPU time, of the others its share, CPU and wall; each
    is the median over rounds of what was measured side by side.
    """
    xs = {
        width: torch.randn(rows, width).to(dtype)
        for layers in ways.values()
        for width in layers.widths()
    }
    repeats = max(1, 16 // rows)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, layers in ways.items():
            seconds = _timed(partial(layers.run, xs), repeats)
            if number:  # the first only fills caches
                took[name].append(seconds)
    first, *others = took.values()
    cells = [f"{rows:,}", f"{1e3 * median(cpu for cpu, _ in first):.2f}"]
    for found in others:
        shares = [
            median(mine[clock] / base[clock] for mine, base in zip(found, first, strict=True))
            for clock in (0, 1)
        ]
        cells.append(" / ".join(f"{share:.3f}" for share in shares))
    return cells


def _timed(call: Callable[[], None], repeats: int) -> tuple[float, float]:
    """CPU seconds of this thread and wall seconds of one call."""
    cpu_s, wall_s = time.thread_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.thread_time() - cpu_s) / repeats, (time.perf_counter() - wall_s) / repeats


def _table(form: str, ways: Mapping[str, Layers | None], rounds: int) -> list[str]:
    found = {name: layers for name, layers in ways.items() if layers is not None}
    first, *others = found
    lines = [
        "| " + " | ".join(["rows", f"{first}, ms", *others]) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for rows in ROWS:
        count = rounds if rows <= 32 else max(3, rounds // (2 if rows <= 256 else 8))
        lines.append("| " + " | ".join(compare(found, rows, _dtype(form), count)) + " |")
    return lines


def measure(options: argparse.Namespace) -> list[str]:
    """The tables of the report."""
    lines: list[str] = []
    for form in options.formats:
        whole = make_layers(form, parts_of_whole, share=1, mode=BASE)
        in_base: dict[str, Layers | None] = {"whole": whole}
        in_base |= {
            f"{share} {name}": make_layers(form, pack, share=share, mode=BASE)
            for share in SHARES
            for name, pack in WAYS.items()
        }
        lines += ["", f"## {form}", "", "In base:", "", *_table(form, in_base, options.rounds)]
        in_shift: dict[str, Layers | None] = {}
        for share in SHARES:
            in_shift = {
                f"a whole {NAMES[share]}": make_layers(
                    form, parts_of_whole, share=1, mode=BASE, of=share
                ),
                "a part": make_layers(form, parts_of_whole, share=share, mode=SHIFT),
            }
            table = _table(form, in_shift, options.rounds)
            lines += ["", f"In shift, with one of {share} parts:", "", *table]
    return lines


def report(tables: list[str], others: float, options: argparse.Namespace) -> str:
    head = [
        "# What sharing one packed copy of the weights costs the modes of a Shift plan",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}; seed 0",
        f"* Machine: {this_machine()}; one thread; other programs took {others:.0%} of it",
        f"* Command: `python -m benchmarks.shared_shards --rounds {options.rounds}`",
        f"* The four products of {LAYERS} layers, hidden size {HIDDEN}, FFN {FFN}, q, k and v "
        f"together {QKV} wide",
        "* Cells: time over that of the first way, **CPU / wall**, the median over rounds in which "
        "all ways took turns (at least 3 rounds at 2,048 rows)",
        "* `whole`: what a static plan runs. `pieces`: each packed by itself, as all modes had it "
        "before; `parts`: read from the packed whole, as now",
    ]
    return "\n".join([*head, *tables]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode(), OtherPrograms() as others:
        tables = measure(options)
    text = report(tables, others.share, options)
    publish(text, options.out)


if __name__ == "__main__":
    main()
