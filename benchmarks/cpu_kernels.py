"""What the compiled operations of a layer are worth on this CPU: against torch's, in one run.

    python -m benchmarks.cpu_kernels [--threads N] [--rounds N] [--dtypes bfloat16,float32]
        [--clock wall|cpu] [--out benchmarks/reports/DATE-cpu-kernels.md]

Both versions run in this process, in turn, on the same tensors and on one checkpoint of 158 M
parameters. Single operations walk through as many caches as the model has layers. On a machine
that others use, CPU time of one thread tells more than time on the wall.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cpu_versions import CLOCKS, REPEATS, VERSIONS, Bench, Call, Compared, running
from benchmarks.peers.checkpoint import create_checkpoint
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.choice import layer_kernels
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.layer import HeadShape, LayerKernels, StepAttention
from engine.parallel.mesh import solo_groups
from engine.rank.runner import TORCH_DTYPES, ModelRunner
from engine.spec.model import DType
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan
from engine.spec.processor import num_cores, processor_name
from engine.spec.share import RankShare
from engine.spec.steps import SlotStart, StepPlan, StepShape

NUM_LAYERS, HIDDEN, FFN = 12, 1024, 2816
NUM_Q, NUM_KV, HEAD_DIM = 16, 8, 64
VOCAB_SIZE = 16_384
BLOCK_SIZE = 16
DECODE_CONTEXT = 160  # half-way from a prompt of 128 through 64 outputs
DECODE_STEPS = 16

# -- single operations ---------------------------------------------------------------------------

STEPS = {
    "decode, batch 1": [(1, DECODE_CONTEXT)],
    "decode, batch 8": [(1, DECODE_CONTEXT)] * 8,
    "decode, batch 32": [(1, DECODE_CONTEXT)] * 32,
    "decode, batch 32, contexts of 10 to 320": [(1, 10 * i) for i in range(1, 33)],
    "decode, batch 1, context 4,096": [(1, 4096)],
    "prefill of 1,024": [(1024, 0)],
    "prefill of 2,048": [(2048, 0)],
    "512 tokens after 1,536": [(512, 1536)],
    "256 tokens after 256, with 16 decodes": [(256, 256)] + [(1, DECODE_CONTEXT)] * 16,
}


def _attend(step: StepAttention, qkv: torch.Tensor, caches: Sequence[LayerCache]) -> None:
    for cache in caches:
        step.attend(qkv, qk_norm=None, cache=cache)


def operations(dtype: torch.dtype, bench: Bench) -> list[Compared]:
    """Attention (with rotation and cache writes), norm with residual sum, gate."""
    found = []
    for name, sequences in STEPS.items():
        tables = tables_of(sequences)
        tokens, blocks = int(tables.query_lens.sum()), int(tables.block_tables.max()) + 1
        caches = [cache_of(blocks, dtype) for _ in range(NUM_LAYERS)]
        qkv = torch.randn(tokens, (NUM_Q + 2 * NUM_KV) * HEAD_DIM).to(dtype)
        calls: dict[str, Call] = {}
        for version_ in VERSIONS:
            step = kernels_of(version_, dtype).step(tables, tokens)
            calls[version_] = partial(_attend, step, qkv, caches)
        found.append(bench.compare(f"attention: {name}", calls, per=NUM_LAYERS))
    for rows in (1, 8, 32, 1024):
        x, weight = torch.randn(rows, HIDDEN).to(dtype), torch.rand(HIDDEN).to(dtype)
        delta = (1e-3 * torch.randn(rows, HIDDEN)).to(dtype)
        gate_up = torch.randn(rows, 2 * FFN).to(dtype)
        norms = {v: repeated(kernels_of(v, dtype).add_norm, x, delta, weight) for v in VERSIONS}
        gates = {v: repeated(kernels_of(v, dtype).silu_mul, gate_up, 1) for v in VERSIONS}
        found.append(bench.compare(f"sum and norm, {rows:,} rows", norms, per=NUM_LAYERS))
        found.append(bench.compare(f"gate, {rows:,} rows", gates, per=NUM_LAYERS))
    return found


def repeated(call: Callable[..., object], *arguments: object) -> Call:
    """``call`` once a layer."""

    def run() -> None:
        for _ in range(NUM_LAYERS):
            call(*arguments)

    return run


def kernels_of(version_: str, dtype: torch.dtype) -> LayerKernels:
    cache = CacheShape(
        block_size=BLOCK_SIZE,
        num_kv_heads=NUM_KV,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    shape = HeadShape(cache=cache, num_q=NUM_Q, rms_eps=1e-5)
    radians = torch.randn(8192, HEAD_DIM // 2)
    with running(version_):
        return layer_kernels(shape, torch.cat((radians.cos(), radians.sin()), dim=1))


def tables_of(sequences: list[tuple[int, int]]) -> StepTables:
    """Tables of (new, cached) tokens whose blocks lie anywhere in the cache."""
    widths = [-(-(new + cached) // BLOCK_SIZE) for new, cached in sequences]
    blocks = np.random.default_rng(0).permutation(sum(widths)).astype(np.int32)
    tables = np.full((len(sequences), max(widths)), -1, np.int32)
    for seq, width in enumerate(widths):
        tables[seq, :width], blocks = blocks[:width], blocks[width:]
    return StepTables(
        query_lens=np.array([new for new, _ in sequences]),
        context_lens=np.array([cached for _, cached in sequences]),
        block_tables=tables,
    )


def cache_of(num_blocks: int, dtype: torch.dtype) -> LayerCache:
    cache = allocate_cache(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=NUM_KV,
        head_dim=HEAD_DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    cache.keys.normal_()
    cache.values.normal_()
    return cache


# -- whole steps ---------------------------------------------------------------------------------


class Steps:
    """A runner of the whole model, fed without a scheduler."""

    def __init__(self, version_: str, folder: Path, dtype: DType) -> None:
        with running(version_):
            self.runner = ModelRunner(
                RankShare(
                    model_dir=str(folder),
                    plan=ParallelPlan(),
                    rank=0,
                    dtype=dtype,
                    device="cpu",
                    block_size=BLOCK_SIZE,
                    num_kv_blocks=1024,
                    num_slots=64,
                    max_blocks_per_seq=256,
                    has_parallel_sampling=True,
                ),
                groups=solo_groups(),
            )
        self._step_id = 0

    def prefill(self, num_seqs: int, length: int, room: int) -> None:
        """New sequences with blocks for ``room`` more tokens."""
        self.runner.forget()
        rng = np.random.default_rng(length)
        width = -(-(length + room) // BLOCK_SIZE)
        blocks = rng.permutation(1024).astype(np.int32)[: num_seqs * width]
        starts = [
            SlotStart(
                slot=slot,
                prompt_len=length,
                token_ids=rng.integers(2, VOCAB_SIZE, length).astype(np.int32).tobytes(),
                blocks=blocks[slot * width : (slot + 1) * width].tobytes(),
            )
            for slot in range(num_seqs)
        ]
        self._run(num_seqs, starts, np.full(num_seqs, length, np.int32).tobytes())

    def decode(self, num_seqs: int, steps: int) -> None:
        for _ in range(steps):
            self._run(num_seqs, [], b"")

    def _run(self, num_seqs: int, starts: list[SlotStart], query_lens: bytes) -> None:
        step = StepPlan(
            step_id=self._step_id,
            shape=StepShape(mode=BASE, num_seqs=num_seqs, num_sampled=num_seqs),
            starts=starts,
            slots=np.arange(num_seqs, dtype=np.int32).tobytes(),
            query_lens=query_lens,
        )
        self._step_id += 1
        answer = self.runner.execute(self.runner.prepare(step))
        assert answer is not None, "one rank answers"
        answer.wait()


def whole_steps(
    folder: Path, dtype: DType, bench: Bench
) -> tuple[list[Compared], dict[str, float]]:
    """Steps of both versions in turn, and torch's operations per layer of a decode step."""
    runners = {version_: Steps(version_, folder, dtype) for version_ in VERSIONS}
    found = []
    for num_seqs in (1, 8, 32):
        for runner in runners.values():
            runner.prefill(num_seqs, 128, room=DECODE_STEPS * (REPEATS * bench.rounds + 2))
        calls: dict[str, Call] = {
            version_: partial(runner.decode, num_seqs, DECODE_STEPS)
            for version_, runner in runners.items()
        }
        found.append(bench.compare(f"decode step, batch {num_seqs}", calls, per=DECODE_STEPS))
    for length in (1024, 2048):
        calls = {
            version_: partial(runner.prefill, 1, length, room=1)
            for version_, runner in runners.items()
        }
        found.append(bench.compare(f"prefill of {length:,} tokens", calls, per=1))
    counts: dict[str, float] = {}
    for version_, runner in runners.items():
        runner.prefill(1, 128, room=8)
        with CountedOperations() as counted:
            runner.decode(1, 1)
        counts[version_] = counted.count / NUM_LAYERS
    return found, counts


class CountedOperations(TorchDispatchMode):
    """Counts torch's operations, views included."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


# -- the report ----------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--out", type=Path, help="write the report here too")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    used = kernels_of("compiled", torch.bfloat16).name
    if used == "torch":
        sys.exit("no C++ compiler here, or it failed: nothing to compare")
    bench = Bench(rounds=options.rounds, clock=CLOCKS[options.clock])
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sections: list[str] = []
    counts: dict[str, float] = {}
    with (
        OtherPrograms() as others,
        tempfile.TemporaryDirectory() as scratch,
        torch.inference_mode(),
    ):
        for name in options.dtypes.split(","):
            dtype = DType(name)
            folder = Path(scratch) / name
            create_checkpoint(folder, TORCH_DTYPES[dtype])
            steps, counts = whole_steps(folder, dtype, bench)
            singles = operations(TORCH_DTYPES[dtype], bench)
            sections += section(f"{name}: whole steps", steps)
            sections += section(f"{name}: one layer's operations", singles)
    report = "\n".join([*heading(options, used, others.share, counts), *sections]) + "\n"
    publish(report, options.out)
    return 0


def section(title: str, rows: list[Compared]) -> list[str]:
    return [
        "",
        f"## {title}",
        "",
        "| what | torch, ms | compiled, ms | torch / compiled |",
        "|---|---:|---:|---:|",
        *(row.row() for row in rows),
    ]


def heading(
    options: argparse.Namespace, used: str, others_share: float, counts: dict[str, float]
) -> list[str]:
    return [
        "# Compiled operations of a layer on a CPU",
        "",
        "How much sooner is a step done when norms, rotation, cache writes, attention and gate are",
        "the compiled library's instead of torch's? Products are the same in both.",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}",
        f"* Machine: {processor_name()}, {num_cores()} cores, {platform.system()}; other "
        f"programs used {others_share:.0%} of them meanwhile",
        f"* Versions: Python {platform.python_version()}, torch {version('torch')}; "
        f"kernels: {used}",
        f"* Command: `python -m benchmarks.cpu_kernels --threads {options.threads} "
        f"--rounds {options.rounds} --dtypes {options.dtypes} --clock {options.clock}` "
        "(`--out` keeps it)",
        f"* Times are of {'the wall' if options.clock == 'wall' else 'the CPU, all threads'}.",
        f"* Model: Llama, hidden {HIDDEN:,}, FFN {FFN:,}, {NUM_LAYERS} layers, {NUM_Q} query and "
        f"{NUM_KV} KV heads of {HEAD_DIM},",
        f"  vocabulary {VOCAB_SIZE:,}, tied: 158 M parameters, random (seed 0). One rank, "
        f"threads: {options.threads}, blocks of {BLOCK_SIZE}",
        "  tokens anywhere in the cache.",
        f"* {options.rounds} rounds, the two versions in turn in each; a round's time is the "
        f"quickest of {REPEATS} calls, a cell the",
        "  median over rounds; in brackets the ratio's range.",
        f"* Operations of torch per layer of a decode step, views included: {counts['torch']:.0f} "
        f"with torch, {counts['compiled']:.0f} with the",
        "  compiled library, and 4 calls of it.",
    ]


if __name__ == "__main__":
    sys.exit(main())
