"""What sampling a step costs on a GPU: the kernels against torch operations, and the bandwidth.

    python -m benchmarks.gpu_sampling [--vocab N] [--rows 1,32,256] [--dtypes bfloat16,float32]
        [--rounds N] [--chunk N] [--out benchmarks/reports/DATE-gpu-sampling.md]

The device's time is taken from a CUDA graph of many steps, the host's from calls without a graph.
Where there is no GPU it says so and measures nothing. A few seconds per line, mostly compilation.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.kernels.cuda import new_event
from engine.sampling.philox import DrawKeys
from engine.sampling.rules import SamplingRows, sample

NOT_RUN = "not run on a GPU: torch finds no CUDA device here"
SPREAD = 3.0  # of normal logits: top-p 0.9 keeps about 1,200 of 128,256 tokens
STEPS_PER_GRAPH = 20
COPIED_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Sampling values that all rows of a step share."""

    temperature: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def rows(self, count: int) -> SamplingRows:
        return SamplingRows(
            temperatures=np.full(count, self.temperature, dtype=np.float32),
            min_ps=np.full(count, self.min_p, dtype=np.float32),
            top_ks=np.full(count, self.top_k, dtype=np.int32),
            top_ps=np.full(count, self.top_p, dtype=np.float32),
            keys=DrawKeys(
                seeds=np.arange(count, dtype=np.uint64),
                choices=np.zeros(count, dtype=np.int32),
                positions=np.arange(count, dtype=np.int32),
            ),
        )


KINDS = {
    "greedy": Kind(),
    "temperature 0.8": Kind(temperature=0.8),
    "min-p 0.05": Kind(temperature=0.8, min_p=0.05),
    "top-k 50": Kind(temperature=0.8, top_k=50),
    "top-p 0.9": Kind(temperature=0.8, top_p=0.9),
    "top-k 50, top-p 0.9": Kind(temperature=0.8, top_k=50, top_p=0.9),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line: microseconds of a step, and how often the tokens were those of torch."""

    kind: str
    dtype: torch.dtype
    logits_bytes: int
    num_rows: int
    device_us: float
    host_us: float
    torch_us: float
    same_tokens: int

    def row(self, bytes_per_s: float) -> str:
        """A line of the report; the floor reads the logits once at ``bytes_per_s``."""
        rate = self.logits_bytes / (self.device_us * 1e-6)
        return (
            f"| {self.num_rows} | {str(self.dtype).removeprefix('torch.')} | {self.kind} "
            f"| {self.device_us:.1f} | {rate / 1e9:,.0f} | {rate / bytes_per_s:.0%} "
            f"| {self.host_us:.0f} | {self.torch_us:.0f} | {self.torch_us / self.device_us:.1f} "
            f"| {self.same_tokens}/{self.num_rows} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--rows", default="1,32,256", help="rows of a step, one or several")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--chunk", type=int, help="tokens per program instead of the usual ones")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(NOT_RUN)
        return 0
    bytes_per_s = copy_bytes_per_s(options.rounds)
    lines = [_head(options, bytes_per_s)]
    print(lines[0])
    for measured in measure_all(options):
        lines.append(measured.row(bytes_per_s))
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 0


def measure_all(options: argparse.Namespace) -> Iterator[Measured]:
    """Every line of the report."""
    for num_rows in map(int, options.rows.split(",")):
        for name in options.dtypes.split(","):
            logits = torch.randn(num_rows, options.vocab, device="cuda") * SPREAD
            logits = logits.to(getattr(torch, name))
            for kind in KINDS:
                yield measure(kind, logits, rounds=options.rounds, chunk=options.chunk)


def measure(name: str, logits: Tensor, *, rounds: int, chunk: int | None) -> Measured:
    from engine.sampling.triton_rows import pack_rows
    from engine.sampling.triton_sampler import draw_on_device, launch

    values = KINDS[name].rows(len(logits))
    rows = pack_rows(values, vocab_size=logits.shape[1])
    words = torch.from_numpy(rows.words).to(logits.device)
    found = draw_on_device(logits, values, chunk=chunk).ids
    wanted = sample(logits, values)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(STEPS_PER_GRAPH):
            launch(logits, rows, words, chunk=chunk)
    return Measured(
        kind=name,
        dtype=logits.dtype,
        logits_bytes=logits.nbytes,
        num_rows=len(logits),
        device_us=_device_us(graph.replay, rounds) / STEPS_PER_GRAPH,
        host_us=_host_us(lambda: draw_on_device(logits, values, chunk=chunk), rounds),
        torch_us=_device_us(lambda: sample(logits, values), rounds),
        same_tokens=int((found == wanted).sum()),
    )


def copy_bytes_per_s(rounds: int) -> float:
    """What a copy in the device's memory reads and writes."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / (_device_us(lambda: target.copy_(source), rounds) * 1e-6)


def _device_us(call: Callable[[], object], rounds: int) -> float:
    """Median time between events around ``call``."""
    call()
    found_us: list[float] = []
    for _ in range(rounds):
        begun, ended = new_event(is_timed=True), new_event(is_timed=True)
        torch.cuda.synchronize()
        begun.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        found_us.append(begun.elapsed_time(ended) * 1e3)
    return float(statistics.median(found_us))


def _host_us(call: Callable[[], object], rounds: int) -> float:
    """Median time until ``call``, which waits for nothing, returns."""
    found_us: list[float] = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        call()
        found_us.append((time.perf_counter() - started_s) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(found_us)


def _head(options: argparse.Namespace, bytes_per_s: float) -> str:
    import triton

    return "\n".join(
        [
            "# Sampling on a GPU",
            "",
            f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}",
            f"* Machine: {torch.cuda.get_device_name()}; a copy reads and writes "
            f"{bytes_per_s / 1e9:,.0f} GB/s",
            f"* Versions: Python {platform.python_version()}, torch {torch.__version__}, "
            f"Triton {triton.__version__}",
            f"* Command: `python -m benchmarks.gpu_sampling {' '.join(sys.argv[1:])}`",
            f"* Vocabulary {options.vocab:,}; normal logits of standard deviation {SPREAD:g}, the",
            "  same ones in every step, so that a few rows stay in the cache, as they would after",
            "  the product that makes them.",
            f"* Device: a step of a CUDA graph of {STEPS_PER_GRAPH}. Host: until a call without a",
            "  graph returns. Torch: the same rows by `rules.sample`, whose limits wait.",
            "* GB/s: the logits' bytes, once, by the device's time; then its share of a copy's.",
            "",
            "| rows | logits | kind | device, us | GB/s | of a copy | host, us | torch, us "
            "| torch / device | same tokens |",
            "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
