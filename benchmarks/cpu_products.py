"""Products of a 158 M Llama on one CPU rank: packed weights against plain ones, and the limits.

    python -m benchmarks.cpu_products [--threads N] [--rounds N] [--out benchmarks/reports/FILE.md]

All ways take turns in one process, so that what else the machine does meets each. Times are CPU
time over threads (of one thread where the machine is shared), the least of the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.kernels.huge_pages import collapse
from engine.kernels.native_build import NO_COMPILER_VARIABLE
from engine.parallel.few_rows_library import find_few_rows
from engine.parallel.products import InputProduct, OutputProduct, split_inputs, split_outputs
from engine.spec.modes import BASE, Mode
from tuner.spec.machine import this_machine

HIDDEN, FFN, QKV, LAYERS = 1024, 2816, 2048, 12
ROWS = (1, 4, 8, 32, 256, 1024)
FEW_ROWS = 32
DTYPES = (torch.bfloat16, torch.float32)
PIECES = 4
PEAK_SIZE = 2048
READ_BYTES = 512 * 2**20
Product = OutputProduct | InputProduct


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The products of all layers in one way, in the order of a step."""

    products: list[Product]
    inputs: list[int]

    def run(self, xs: dict[int, Tensor]) -> None:
        """One step's products over ``xs``, an input by its width."""
        for product, width in zip(self.products, self.inputs, strict=True):
            product(xs[width], BASE)


def make_layers(dtype: torch.dtype, *, may_pack: bool, pieces: int = 1) -> Layers:
    """Random layers; of ``pieces`` a rank multiplies with all, as on the base of sp=pieces."""
    products: list[Product] = []
    for _ in range(LAYERS):
        outputs = partial(_outputs, dtype=dtype, may_pack=may_pack, pieces=pieces)
        inputs = partial(_inputs, dtype=dtype, may_pack=may_pack, pieces=pieces)
        products += [outputs(QKV), inputs(HIDDEN), outputs(2 * FFN), inputs(FFN)]
    return Layers(products=products, inputs=[HIDDEN, HIDDEN, HIDDEN, FFN] * LAYERS)


@contextmanager
def without_compiled() -> Iterator[None]:
    """Weights packed within have no compiled product: oneDNN multiplies with few rows too."""
    before = os.environ.get(NO_COMPILER_VARIABLE)
    os.environ[NO_COMPILER_VARIABLE] = "1"
    find_few_rows.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(NO_COMPILER_VARIABLE)
        if before is not None:
            os.environ[NO_COMPILER_VARIABLE] = before
        find_few_rows.cache_clear()


def _outputs(size: int, *, dtype: torch.dtype, may_pack: bool, pieces: int) -> OutputProduct:
    weight = torch.randn(size, HIDDEN).mul_(0.02).to(dtype)
    return split_outputs(weight, None, _ranges(size, pieces), may_pack=may_pack)


def _inputs(size: int, *, dtype: torch.dtype, may_pack: bool, pieces: int) -> InputProduct:
    weight = torch.randn(HIDDEN, size).mul_(0.02).to(dtype)
    return split_inputs(weight, _ranges(size, pieces), may_pack=may_pack)


def _ranges(size: int, pieces: int) -> dict[Mode, range]:
    """Base has all; the other names only cut it into equal pieces."""
    cuts = {Mode(f"1x{i + 2}"): range(i * size // pieces, size) for i in range(1, pieces)}
    return {BASE: range(size)} | cuts


def least_s(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, threads: int
) -> dict[str, float]:
    """The least seconds of each way over ``rounds``, in which they take turns."""
    found = dict.fromkeys(ways, float("inf"))
    clock = time.process_time if threads == 1 else time.perf_counter
    for _ in range(rounds):
        for name, call in ways.items():
            started_s = clock()
            call()
            found[name] = min(found[name], clock() - started_s)
    return found


def limits(*, rounds: int, threads: int) -> tuple[float, dict[torch.dtype, float]]:
    """Bytes a second of reading memory (two streams on large pages), and multiply-adds times two a
    second in each format.
    """
    streams = torch.ones(2, READ_BYTES // 8)
    collapse([(streams.data_ptr(), streams.nbytes)])
    reading = {"read": partial(torch.dot, *streams)}
    read = least_s(reading, rounds=rounds, threads=threads)["read"]
    peaks = {}
    for dtype in DTYPES:
        weight = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
        square = {BASE: range(PEAK_SIZE)}
        ways: dict[str, Callable[[], object]] = {
            str(may_pack): partial(
                split_outputs(weight, None, square, may_pack=may_pack), weight, BASE
            )
            for may_pack in (False, True)
        }
        peaks[dtype] = (
            2 * PEAK_SIZE**3 / min(least_s(ways, rounds=rounds, threads=threads).values())
        )
    return READ_BYTES / read, peaks


def measure(options: argparse.Namespace) -> list[str]:
    """The tables of the report."""
    read, peaks = limits(rounds=options.rounds, threads=options.threads)
    lines = [f"Reading memory: {read / 1e9:.1f} GB/s."]
    for dtype in DTYPES:
        lines += ["", f"## {str(dtype).removeprefix('torch.')}", ""]
        lines.append(f"Best product of {PEAK_SIZE}^3: {peaks[dtype] / 1e9:.0f} GFLOP/s.")
        lines += ["", *_table(dtype, read, peaks[dtype], options)]
    return lines


def _table(dtype: torch.dtype, read: float, peak: float, options: argparse.Namespace) -> list[str]:
    with without_compiled():
        by_onednn = make_layers(dtype, may_pack=True)
    ways = {
        "plain": make_layers(dtype, may_pack=False),
        "packed, oneDNN alone": by_onednn,
        "packed": make_layers(dtype, may_pack=True),
        f"packed in {PIECES}": make_layers(dtype, may_pack=True, pieces=PIECES),
    }
    parameters = LAYERS * HIDDEN * (QKV + HIDDEN + 3 * FFN)
    num_bytes = parameters * torch.empty(0, dtype=dtype).element_size()
    lines = [
        f"| rows | {' ms | '.join(ways)} ms | packed / plain | of reading | of the peak |",
        "|---" * (len(ways) + 4) + "|",
    ]
    for rows in ROWS:
        xs = {width: torch.randn(rows, width).to(dtype) for width in (HIDDEN, FFN)}
        calls: dict[str, Callable[[], object]] = {
            name: partial(layers.run, xs) for name, layers in ways.items()
        }
        rounds = options.rounds if rows <= FEW_ROWS else max(2, options.rounds // 8)
        seconds = least_s(calls, rounds=rounds, threads=options.threads)
        packed = seconds["packed"]
        times = " | ".join(f"{1e3 * s:.1f}" for s in seconds.values())
        lines.append(
            f"| {rows} | {times} | {seconds['plain'] / packed:.2f}x faster "
            f"| {num_bytes / packed / read:.0%} | {2 * rows * parameters / packed / peak:.0%} |"
        )
    return lines


def report(tables: list[str], others: float, options: argparse.Namespace) -> str:
    clock = "CPU time" if options.threads == 1 else "wall time"
    head = [
        "# Products on one CPU rank: packed weights against plain",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}; seed 0",
        f"* Machine: {this_machine()}; other programs took {others:.0%} of it",
        f"* Command: `python -m benchmarks.cpu_products --threads {options.threads} "
        f"--rounds {options.rounds}`; least {clock} of {options.rounds} rounds in turn",
        f"* {LAYERS} layers of hidden size {HIDDEN}, FFN {FFN}, q, k and v together {QKV} wide; "
        "the head, tied to the embedding, is plain",
        "* `packed`: few rows (bfloat16 on Intel without AMX: any) by compiled products, others "
        "by oneDNN",
        f"* `packed in {PIECES}`: base of a plan with sp={PIECES} and Shift, whose rungs share the "
        "pieces",
        "* `of reading`: bytes of weights a second over reading memory; `of the peak`: against the "
        "best square product; both of packed weights, on this machine in this run",
        "",
    ]
    return "\n".join([*head, *tables]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode(), OtherPrograms() as others:
        tables = measure(options)
    text = report(tables, others.share, options)
    publish(text, options.out)


if __name__ == "__main__":
    main()
