"""What sampling a step costs on several CPU ranks: sequence-parallel against gathered.

    python -m benchmarks.sampling [--rounds N] [--out benchmarks/reports/DATE-sampling.md]

Both ways run in the same rank processes, in turn, so that what else the machine does meets both.
Started with ``--socket-fd`` this module is one of the ranks.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.executors.ranks import RankProcesses
from engine.parallel.shm_build import find_library
from engine.parallel.shm_layout import GroupSpec, Segment
from engine.spec.processor import num_cores, processor_name
from engine.spec.steps import SlotSampling, SlotStart

VOCAB_SIZE = 128_256
RANK_COUNTS = (2, 4)
REPEATS = 3  # per way, workload and round
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``spread`` is the standard deviation of the normal logits: at 1 top-p 0.9 keeps about
    65,000 tokens, at 3 about 1,200.
    """

    spread: float
    sampling: SlotSampling


NUCLEUS = SlotSampling(temperature=0.8, top_p=0.9)
WORKLOADS = {
    "greedy": Workload(spread=3.0, sampling=SlotSampling()),
    "greedy with a logit bias": Workload(spread=3.0, sampling=SlotSampling(logit_bias={5: 1.0})),
    "top-p 0.9, temperature 0.8": Workload(spread=3.0, sampling=NUCLEUS),
    "the same, flat logits": Workload(spread=1.0, sampling=NUCLEUS),
}


class Join(msgspec.Struct, tag="join", kw_only=True):
    """Open the shared memory (descriptor 0) and make my part of the logits."""

    rank: int
    num_ranks: int
    num_rows: int
    library: str
    seed: int


class Measure(msgspec.Struct, tag="measure", kw_only=True):
    workload: str
    is_parallel: bool


class Measured(msgspec.Struct, kw_only=True):
    """Milliseconds of each repeat on one rank, and a checksum of the ids."""

    each_ms: list[float] = []
    checksum: int = 0


# -- a rank ------------------------------------------------------------------------------------


def rank_main() -> int:
    from engine.wire.child import begin

    channel = begin(sys.argv[1:])
    decoder = msgspec.msgpack.Decoder(Join | Measure)
    sampling: RankSampling | None = None
    while (frame := channel.receive()) is not None:
        match decoder.decode(frame):
            case Join() as join:
                sampling = RankSampling(join, channel.take_fds()[0])
                answer = Measured()
            case Measure() as measure:
                assert sampling is not None, "Join comes first"
                answer = sampling.measure(measure)
        channel.send(msgspec.msgpack.encode(answer))
    return 0


class RankSampling:
    """One rank's shard of the logits and its two samplers."""

    def __init__(self, join: Join, fd: int) -> None:
        import torch

        from engine.parallel.communicator import Communicator
        from engine.parallel.mesh import RankGroups, RungGroups, SoloCommunicator
        from engine.parallel.shm import ShmTransport
        from engine.sampling.sampler import Sampler
        from engine.spec.modes import ENDS

        torch.set_num_threads(1)
        members = tuple(range(join.num_ranks))
        transport = ShmTransport(
            fd=fd,
            groups=[GroupSpec(name="shift", members=members)],
            rank=join.rank,
            num_ranks=join.num_ranks,
            library=Path(join.library) if join.library else None,
            timeout_s=TIMEOUT_S,
        )
        self._transport = transport
        self._group = transport.make("shift", members)
        solo = SoloCommunicator()
        pair: RungGroups[Communicator] = RungGroups(tensor=solo, sequence=solo)
        groups = RankGroups(rungs=dict.fromkeys(ENDS, pair), shift=self._group, pipeline=solo)
        self._samplers = {
            is_parallel: Sampler(
                groups=groups,
                vocab_size=VOCAB_SIZE,
                num_slots=join.num_rows,
                is_parallel=is_parallel,
                device="cpu",
            )
            for is_parallel in (True, False)
        }
        width = -(-VOCAB_SIZE // join.num_ranks)
        generator = torch.Generator().manual_seed(join.seed * 1000 + join.rank)
        self._shard = torch.randn(join.num_rows, width, generator=generator)
        self._shard[:, max(0, VOCAB_SIZE - join.rank * width) :] = -torch.inf

    def measure(self, measure: Measure) -> Measured:
        workload, sampler = WORKLOADS[measure.workload], self._samplers[measure.is_parallel]
        slots = np.arange(len(self._shard), dtype=np.int32)
        for slot in slots.tolist():
            values = msgspec.structs.replace(workload.sampling, seed=slot)
            sampler.start(SlotStart(slot=slot, prompt_len=0, token_ids=b"", sampling=values))
        shard = self._shard * workload.spread
        each_ms, checksum = [], 0
        for _ in range(REPEATS):
            self._group.barrier()
            start_s = time.perf_counter()
            ids = sampler.sample(shard, slots=slots, positions=slots).ids
            each_ms.append((time.perf_counter() - start_s) * 1e3)
            checksum = zlib.crc32(ids.numpy().tobytes(), checksum)
        return Measured(each_ms=each_ms, checksum=checksum)


# -- the parent --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Milliseconds per step of every round, the two ways of a round belonging together."""

    parallel_ms: list[float]
    gathered_ms: list[float]

    @property
    def ratio(self) -> float:
        """Gathered over sequence-parallel, median of the rounds'."""
        pairs = zip(self.gathered_ms, self.parallel_ms, strict=True)
        return statistics.median(gathered / parallel for gathered, parallel in pairs)


Results = dict[tuple[int, str], Compared]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=128, help="sampled rows per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    results: Results = {}
    with OtherPrograms() as others:
        for num_ranks in RANK_COUNTS:
            results |= _run(num_ranks, options)
    report = _report(results, options, others.share)
    publish(report, options.out)
    return 0


def _run(num_ranks: int, options: argparse.Namespace) -> Results:
    library = find_library()
    with ExitStack() as stack:
        ranks = RankProcesses(num_ranks, module="benchmarks.sampling")
        stack.callback(ranks.close)
        segment = Segment.create()
        stack.callback(segment.close)
        for rank in range(num_ranks):
            join = Join(
                rank=rank,
                num_ranks=num_ranks,
                num_rows=options.rows,
                library=str(library or ""),
                seed=options.seed,
            )
            ranks.send(rank, msgspec.msgpack.encode(join), [segment.fd])
        _answers(ranks)
        results = {
            (num_ranks, name): Compared(parallel_ms=[], gathered_ms=[]) for name in WORKLOADS
        }
        for number in range(-1, options.rounds):  # the first one warms up
            for name in WORKLOADS:
                parallel_ms, gathered_ms = _compare(ranks, name)
                if number >= 0:
                    results[num_ranks, name].parallel_ms.append(parallel_ms)
                    results[num_ranks, name].gathered_ms.append(gathered_ms)
        return results


def _compare(ranks: RankProcesses, workload: str) -> tuple[float, float]:
    """Milliseconds per step, sequence-parallel and gathered, whose ids are checked to agree."""
    times, checksums = [], set()
    for is_parallel in (True, False):
        message = Measure(workload=workload, is_parallel=is_parallel)
        ranks.send_all(msgspec.msgpack.encode(message))
        answers = _answers(ranks)
        slowest = [max(each) for each in zip(*(a.each_ms for a in answers), strict=True)]
        times.append(statistics.median(slowest))
        checksums |= {answer.checksum for answer in answers}
    if len(checksums) != 1:
        sys.exit(f"{workload}: the two ways sampled different tokens")
    return times[0], times[1]


def _answers(ranks: RankProcesses) -> list[Measured]:
    found: list[Measured] = []
    while len(found) < ranks.num_ranks:
        frame = ranks.receive(TIMEOUT_S)
        if frame is None:
            sys.exit("a rank hangs")
        found.append(msgspec.msgpack.decode(frame.payload, type=Measured))
    return found


def _report(results: Results, options: argparse.Namespace, others_share: float) -> str:
    from importlib.metadata import version

    cores = num_cores()
    lines = [
        "# Sampling on several CPU ranks",
        "",
        "How much sooner does a step have its tokens when every rank of a stage samples a part of",
        "the rows (sequence-parallel), instead of the first rank all of them (gathered)?",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}",
        f"* Machine: {processor_name()}, {cores} cores, {platform.system()}; other programs used "
        f"{others_share:.0%} of them meanwhile",
        f"* Versions: Python {platform.python_version()}, torch {version('torch')}, "
        f"numpy {version('numpy')}",
        f"* Command: `python -m benchmarks.sampling --rounds {options.rounds} "
        f"--rows {options.rows} --seed {options.seed}` (`--out` keeps it)",
        f"* {options.rows} rows, vocabulary {VOCAB_SIZE:,} in float32; ranks are processes of one",
        f"  thread, joined by shared memory ({'C++' if find_library() else 'Python'} collectives).",
        f"* {options.rounds} rounds, the two ways in turn in each; a cell is the median over",
        f"  rounds (in brackets: fastest and slowest) of the median of {REPEATS} steps, each as",
        "  long as its slowest rank.",
        "* Both ways gave the same tokens in every step.",
        "",
        "| ranks | workload | sequence-parallel, ms | gathered, ms | gathered / parallel |",
        "|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {num_ranks} | {name} | {_cell(found.parallel_ms)} | {_cell(found.gathered_ms)} "
        f"| {found.ratio:.1f} |"
        for (num_ranks, name), found in results.items()
    ]
    lines += [
        "",
        "Logits are normal with standard deviation 3; flat ones have 1, so that top-p keeps half",
        "of the vocabulary. Sequence-parallel greedy rows without edits exchange one largest logit",
        "per rank; a logit bias (or random sampling) makes them exchange all logits, which",
        "gathered sampling always does.",
        "",
    ]
    lines += [
        f"{num_ranks} ranks shared {cores} cores here: they cannot be {num_ranks} times as fast."
        for num_ranks in RANK_COUNTS
        if num_ranks > cores
    ]
    return "\n".join(lines).rstrip() + "\n"


def _cell(rounds_ms: list[float]) -> str:
    middle = statistics.median(rounds_ms)
    return f"{middle:.1f} ({min(rounds_ms):.1f} to {max(rounds_ms):.1f})"


if __name__ == "__main__":
    sys.exit(rank_main() if "--socket-fd" in sys.argv else main())
