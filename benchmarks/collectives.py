"""What an all-reduce between two CPU ranks costs: shared memory (C++, Python) against gloo.

    python -m benchmarks.collectives [--rounds N] [--out benchmarks/reports/DATE-collectives.md]

All ways run in the same two processes, interleaved round by round, so that what else the machine
does meets all of them. Started with ``--socket-fd`` this module is one of the ranks.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.reporting import publish
from engine.executors.ranks import RankProcesses
from engine.parallel.shm_build import find_library
from engine.parallel.shm_layout import GroupSpec, Segment
from engine.spec.processor import num_cores, processor_name
from engine.wire.messages import Meeting

NUM_RANKS = 2
MEMBERS = (0, 1)
SIZES_KIB = (1, 4, 16, 64, 256, 1024)
BUDGET_S = 0.05  # per way, size and round
WAYS = ("C++", "Python", "gloo", "gloo, ordered")
TIMEOUT_S = 60.0


class Join(msgspec.Struct, tag="join", kw_only=True):
    """Open the shared memory (descriptor 0) twice and gloo (descriptor 1 on rank 0)."""

    rank: int
    library: str
    address: str


class Measure(msgspec.Struct, tag="measure", kw_only=True):
    way: str
    num_bytes: int
    repeats: int


class Seconds(msgspec.Struct, kw_only=True):
    """Seconds one all-reduce took on average on one rank; 0 as the answer to Join."""

    each_s: float = 0.0


# -- a rank ------------------------------------------------------------------------------------


def rank_main() -> int:
    from engine.wire.child import begin

    channel = begin(sys.argv[1:])
    decoder = msgspec.msgpack.Decoder(Join | Measure)
    ways: dict[str, Callable[[Any], object]] = {}
    while (frame := channel.receive()) is not None:
        match decoder.decode(frame):
            case Join() as join:
                ways = _join(join, channel.take_fds())
                answer = Seconds()
            case Measure() as measure:
                answer = Seconds(each_s=_time(ways[measure.way], measure))
        channel.send(msgspec.msgpack.encode(answer))
    return 0


def _join(join: Join, fds: list[int]) -> dict[str, Callable[[Any], object]]:
    import torch
    import torch.distributed as dist

    from engine.parallel.transport import open_transport

    torch.set_num_threads(1)
    compiled, python, *listener = fds
    groups = [GroupSpec(name="all", members=MEMBERS)]
    made = {}
    for way, backend, address, handed in (
        ("C++", "shm", join.library, [compiled]),
        ("Python", "shm", "", [python]),
        ("gloo, ordered", "gloo", join.address, listener),
    ):
        transport = open_transport(
            Meeting(backend=backend, address=address, timeout_s=TIMEOUT_S),
            rank=join.rank,
            device="cpu",
            groups=groups,
            num_ranks=NUM_RANKS,
            fds=handed,
        )
        made[way] = transport.make("all", MEMBERS)
    ways: dict[str, Callable[[Any], object]] = {
        way: group.all_reduce for way, group in made.items()
    }
    ways["gloo"] = dist.all_reduce  # in no fixed order: what torch users get
    return ways


def _time(all_reduce: Callable[[Any], object], measure: Measure) -> float:
    import torch

    x = torch.zeros(measure.num_bytes // 4)
    for _ in range(5):
        all_reduce(x)
    start_s = time.perf_counter()
    for _ in range(measure.repeats):
        all_reduce(x)
    return (time.perf_counter() - start_s) / measure.repeats


# -- the parent --------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    times = _run(options.rounds)
    report = _report(times, options.rounds, load_before)
    publish(report, options.out)
    return 0


Times = dict[tuple[str, int], list[float]]


def _run(rounds: int) -> Times:
    """Microseconds of every round, by way and KiB."""
    library = find_library()
    if library is None:
        sys.exit("no C++ compiler here: nothing to compare with")
    with ExitStack() as stack:
        ranks = RankProcesses(NUM_RANKS, module="benchmarks.collectives")
        stack.callback(ranks.close)
        segments = [Segment.create(), Segment.create()]
        for segment in segments:
            stack.callback(segment.close)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        fds = [segments[0].fd, segments[1].fd]
        for rank in range(NUM_RANKS):
            join = Join(rank=rank, library=str(library), address=address)
            handed = [*fds, listener.fileno()] if rank == 0 else fds
            ranks.send(rank, msgspec.msgpack.encode(join), handed)
        _answers(ranks)
        return _rounds(ranks, rounds)


def _rounds(ranks: RankProcesses, rounds: int) -> Times:
    repeats = {
        (way, kib): max(5, int(BUDGET_S / _measure(ranks, way, kib, 10)))
        for kib in SIZES_KIB
        for way in WAYS
    }
    times: Times = {key: [] for key in repeats}
    for _ in range(rounds):
        for way, kib in repeats:
            each_s = _measure(ranks, way, kib, repeats[way, kib])
            times[way, kib].append(each_s * 1e6)
    return times


def _measure(ranks: RankProcesses, way: str, kib: int, repeats: int) -> float:
    message = Measure(way=way, num_bytes=kib * 1024, repeats=repeats)
    ranks.send_all(msgspec.msgpack.encode(message))
    return max(_answers(ranks))


def _answers(ranks: RankProcesses) -> list[float]:
    found: list[float] = []
    while len(found) < NUM_RANKS:
        frame = ranks.receive(TIMEOUT_S)
        if frame is None:
            sys.exit("a rank hangs")
        found.append(msgspec.msgpack.decode(frame.payload, type=Seconds).each_s)
    return found


def _report(times: Times, rounds: int, load_before: float) -> str:
    from importlib.metadata import version

    lines = [
        "# All-reduce between two CPU ranks",
        "",
        "What does one all-reduce (float32 sum) cost by each way of joining two ranks of a host?",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}",
        f"* Machine: {processor_name()}, {num_cores()} cores, {platform.system()}",
        f"* Versions: Python {platform.python_version()}, torch {version('torch')}",
        f"* Command: `python -m benchmarks.collectives --rounds {rounds}` (`--out` keeps it)",
        f"* Load average before {load_before:.1f}, after {os.getloadavg()[0]:.1f}; the run itself "
        "adds up to 2.",
        "* One thread per rank; no seed (contents do not matter); the slower rank counts.",
        f"* {rounds} rounds, all ways interleaved; each cell: median over rounds of the mean time,",
        "  in brackets the fastest and the slowest round.",
        "",
        "`gloo` is `torch.distributed.all_reduce`; `gloo, ordered` is what Gearshift does over",
        "gloo to keep sums in group order (gather, then add).",
        "",
        "## Microseconds",
        "",
        "| KiB | " + " | ".join(WAYS) + " |",
        "|---:|" + "---:|" * len(WAYS),
    ]
    lines += [
        f"| {kib} | " + " | ".join(_cell(times[way, kib]) for way in WAYS) + " |"
        for kib in SIZES_KIB
    ]
    lines += [
        "",
        "## Times the C++ version's, per round (median)",
        "",
        "| KiB | " + " | ".join(WAYS[1:]) + " |",
        "|---:|" + "---:|" * (len(WAYS) - 1),
    ]
    for kib in SIZES_KIB:
        ratios = (_ratio(times[way, kib], times["C++", kib]) for way in WAYS[1:])
        lines.append(f"| {kib} | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + " |")
    return "\n".join(lines) + "\n"


def _cell(rounds_us: list[float]) -> str:
    middle = statistics.median(rounds_us)
    return f"{middle:.1f} ({min(rounds_us):.1f} to {max(rounds_us):.1f})"


def _ratio(slower: list[float], faster: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


if __name__ == "__main__":
    sys.exit(rank_main() if "--socket-fd" in sys.argv else main())
