"""Question: how fast is this version of the engine beside an earlier one, on the same cores?

The cells of ``benchmarks.peers``, both versions in turn: milliseconds of a decode step, or to the
first token. On a busy machine CPU time tells more than time; threads that wait are told to sleep.

    python -m benchmarks.peers.versions --before FOLDER --work DIR --out FILE
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.peers.__main__ import CELLS, OUTPUT_TOKENS, VOCABULARY, Cell
from benchmarks.peers.checkpoint import create_checkpoint
from benchmarks.peers.peer import Peer, PeerSpec, end_on_sigterm, ours
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish

HERE = Path(__file__).resolve().parents[2]
# By version, plan and cell: milliseconds, and those of CPU, of each round.
Rounds = dict[tuple[str, str, Cell], list[tuple[float, float]]]


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--before", type=Path, required=True, help="a checkout of the other version"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--plans", nargs="*", default=["tp=1"])
    parser.add_argument("--threads", default="", help="of a rank; default: the engine's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    end_on_sigterm()
    checkpoint = options.work / f"m158-{options.dtype}"
    create_checkpoint(checkpoint, getattr(torch, options.dtype))
    rounds: Rounds = {}
    with ExitStack() as stack, OtherPrograms() as others:
        for plan in options.plans:
            peers = {
                name: stack.enter_context(
                    Peer(_spec(name, folder, checkpoint, plan, options), options.work / "log")
                )
                for name, folder in (("before", options.before.resolve()), ("now", HERE))
            }
            _measure(peers, plan, options.rounds, rounds)
    report = _report(rounds, options.plans, options.dtype, options.rounds, others.share)
    publish(report, options.out)


def _spec(
    name: str, folder: Path, checkpoint: Path, plan: str, options: argparse.Namespace
) -> PeerSpec:
    spec = ours(name, checkpoint.resolve(), options.dtype, plan, "", options.threads)
    # -P: the module is the folder's and not this folder's.
    command = (sys.executable, "-P", *spec.command[1:])
    environment = {"PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
    return PeerSpec(name=name, command=command, environment=environment)


def _measure(peers: dict[str, Peer], plan: str, num_rounds: int, rounds: Rounds) -> None:
    """Every round each cell of both versions, in turn, after a short one to warm up."""
    for peer in peers.values():
        _times_ms(peer, CELLS[0], seed=0)
    for number in range(num_rounds):
        for cell in CELLS:
            for name, peer in peers.items():
                found = rounds.setdefault((name, plan, cell), [])
                found.append(_times_ms(peer, cell, seed=number + 1))


def _times_ms(peer: Peer, cell: Cell, seed: int) -> tuple[float, float]:
    draws = random.Random(seed)
    prompts = [draws.choices(VOCABULARY, k=cell.prompt_tokens) for _ in range(cell.batch)]
    first = _asked_ms(peer, prompts, 1)
    if not cell.is_decode:
        return first
    whole = _asked_ms(peer, prompts, OUTPUT_TOKENS)
    step, step_cpu = ((b - a) / (OUTPUT_TOKENS - 1) for a, b in zip(first, whole, strict=True))
    return step, step_cpu


def _asked_ms(peer: Peer, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
    begun_s = peer.cpu_s
    seconds = peer.ask(prompts, num_tokens).seconds
    return seconds * 1e3, (peer.cpu_s - begun_s) * 1e3


def _report(
    rounds: Rounds, plans: Sequence[str], dtype: str, num_rounds: int, other_share: float
) -> str:
    lines = [
        f"{datetime.date.today()}, {platform.machine()}, {torch.get_num_threads()} cores, {dtype}; "
        f"medians of {num_rounds} rounds in turns; other programs took {other_share:.0%} of the "
        "cores meanwhile.",
        "",
        "| plan | cell | ms before | ms now | CPU ms before | CPU ms now | CPU before / now |",
        "|---" * 7 + "|",
    ]
    for plan in plans:
        for cell in CELLS:
            title = f"a step of decode {cell.batch}" if cell.is_decode else cell.title
            (before, before_cpu), (now, now_cpu) = (
                (statistics.median(times) for times in zip(*rounds[name, plan, cell], strict=True))
                for name in ("before", "now")
            )
            lines.append(
                f"| {plan} | {title} | {before:,.1f} | {now:,.1f} | {before_cpu:,.1f} | "
                f"{now_cpu:,.1f} | {before_cpu / now_cpu:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
