"""Small sums between ranks, one kernel against NCCL: ``python -m benchmarks.gpu_check.sums``.

With two GPUs or more, a rank on each; the sums are timed in CUDA graphs. One GPU is shared by two
ranks, whose kernels take turns: that shows whether the sums are right, not how long they take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu_check.timing import time_us
from engine.parallel.communicator import Communicator
from engine.parallel.one_shot import (
    MOST_BYTES,
    MOST_MEMBERS,
    OneShotCommunicator,
    PeerSum,
    with_one_shot,
)
from engine.parallel.staged import StagedCommunicator
from engine.parallel.torch_groups import TorchCommunicator

ROOT = Path(__file__).parents[2]
HIDDEN = 8192  # of a 70B model
ROWS = (1, 2, 4, 8, 16)
TIMEOUT_S = 60.0
# Torch refuses ranks that share a device unless it is told that they may.
SHARED = {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}


@dataclass(frozen=True, kw_only=True)
class SumTime:
    """A sum of ``num_bytes``; times are None on a shared device. ``error`` is the largest distance
    from the exact sum, over the largest part."""

    num_bytes: int
    error: float
    one_shot_us: float | None = None
    other_us: float | None = None


def sum_section() -> str:
    """The report's part on small sums."""
    num_devices = torch.cuda.device_count()
    world = min(num_devices, MOST_MEMBERS) if num_devices > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start(rank, world, num_devices > 1, Path(folder)) for rank in range(world)]
        try:
            outputs = [rank.communicate(timeout=TIMEOUT_S) for rank in ranks]
        except subprocess.TimeoutExpired:
            outputs = []
        finally:
            for rank in ranks:
                rank.kill()
    head = f"## Small sums over {world} ranks" + ("" if num_devices > 1 else " that share a GPU")
    if not outputs:
        return f"{head}\n\nNot done within {TIMEOUT_S:.0f} s."
    if any(rank.returncode for rank in ranks):
        words = [err.strip().splitlines()[-1] for _, err in outputs if err.strip()]
        return f"{head}\n\nFailed: {words[0] if words else 'without a word'}"
    said = json.loads(outputs[0][0].splitlines()[-1])
    if said["reason"]:
        return f"{head}\n\nNo one-shot sums here: {said['reason']}"
    lines = [
        f"{head}\n",
        "| bytes | largest error | one kernel, us | NCCL, us |",
        "|---:|---:|---:|---:|",
    ]
    for row in (SumTime(**row) for row in said["rows"]):
        times = ["" if us is None else f"{us:.1f}" for us in (row.one_shot_us, row.other_us)]
        lines.append(f"| {row.num_bytes:,} | {row.error:.1e} | {times[0]} | {times[1]} |")
    return "\n".join(lines)


def _start(rank: int, world: int, has_own: bool, folder: Path) -> subprocess.Popen[str]:
    words = [f"--rank={rank}", f"--world={world}", f"--meet={folder / 'meet'}"]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_check.sums", *words, *(["--own"] * has_own)],
        cwd=ROOT,
        env=os.environ | ({} if has_own else SHARED),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(rank: int, world: int, *, has_own: bool, meet: str) -> None:
    """One rank: compare, and where it has a device of its own, measure."""
    device = torch.device("cuda", rank if has_own else 0)
    torch.cuda.set_device(device)
    backend = "nccl" if has_own else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=world)
    group = dist.group.WORLD
    assert group is not None, "it was just made"
    inner: Communicator = TorchCommunicator(
        group=group, name="all", size=world, rank=rank, timeout_s=TIMEOUT_S, is_nccl=has_own
    )
    if not has_own:
        inner = StagedCommunicator(inner)
    found, reason = with_one_shot(inner, lambda: PeerSum(group, device), device)
    rows: list[SumTime] = []
    if isinstance(found, OneShotCommunicator):
        rows = [_measure(count, found, device, has_own=has_own) for count in ROWS]
    print(json.dumps({"reason": reason, "rows": [asdict(row) for row in rows]}))
    dist.destroy_process_group()


def _measure(
    num_rows: int, found: OneShotCommunicator, device: torch.device, *, has_own: bool
) -> SumTime:
    generator = torch.Generator(device).manual_seed(found.rank)
    x = torch.randn(num_rows, HIDDEN, device=device, generator=generator).bfloat16()
    assert x.nbytes <= MOST_BYTES, "a small sum"
    wanted = found.all_gather(x).double().sum(dim=0)
    error = ((found.all_reduce(x).double() - wanted).abs().max() / x.abs().max()).item()
    if not has_own:
        return SumTime(num_bytes=x.nbytes, error=error)
    return SumTime(
        num_bytes=x.nbytes,
        error=error,
        one_shot_us=time_us([lambda: found.all_reduce(x)] * 20),
        other_us=time_us([lambda: found.inner.all_reduce(x)] * 20),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--world", type=int)
    parser.add_argument("--meet", help="file that does not exist yet")
    parser.add_argument("--own", action="store_true", help="a device for each rank")
    asked = parser.parse_args()
    if asked.rank is not None:
        _run(asked.rank, asked.world, has_own=asked.own, meet=asked.meet)
    elif torch.cuda.is_available():
        print(sum_section())
    else:
        print("not run on a GPU: torch finds no CUDA device here")


if __name__ == "__main__":
    main()
