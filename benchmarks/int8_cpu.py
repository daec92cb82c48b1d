"""Question: what do int8 weights gain on a CPU, and what do they cost in accuracy?

    python -m benchmarks.int8_cpu --work DIR [--dtype bfloat16] [--threads 1] [--rounds 3]

Two engines of one rank on the checkpoint of :mod:`benchmarks.peers` answer in turn, one with
``--quantization int8`` (or both in those of ``--formats``), each stopped while the other answers.
On one thread times are CPU time of its processes, so that what else the machine does counts little;
on more, wall time. The products alone: :mod:`benchmarks.int8_products`.
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.__main__ import CELLS, VOCABULARY, Cell
from benchmarks.peers.checkpoint import create_checkpoint
from benchmarks.peers.peer import Peer, end_on_sigterm, ours
from benchmarks.quiet import OtherPrograms, own_cpu_s
from engine.parallel.int8_library import as_held_on_cpu
from engine.parallel.quantised import quantise
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from tuner.spec.machine import this_machine

INT8, PLAIN = WeightFormat.INT8, "plain"
MEASURED = {cell.name: cell for cell in CELLS[:4]}
ACCURACY_ROWS, ACCURACY_TOKENS = 8, 128


def count_bytes(folder: Path, dtype: DType) -> list[str]:
    """Bytes in memory of matrices, and those of them that a step reads: all but the embedding."""
    plain = ModelConfig.from_dir(folder)
    held = as_held_on_cpu(plain.quantised(INT8), dtype)
    resident = [model.weight_bytes_per_rank(ParallelPlan(), dtype) for model in (plain, held)]
    embedding = plain.vocab_size * plain.hidden_size * dtype.num_bytes
    read = [resident[0] - (0 if plain.tie_embeddings else embedding), resident[1] - embedding]
    return [
        f"| {what} | {a / 1e6:.1f} MB | {b / 1e6:.1f} MB | {b / a:.3f} |"
        for what, (a, b) in (("weights read by a step", read), ("weights in memory", resident))
    ]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Asks peers for ``num_tokens`` of each prompt of ``cells``."""

    threads: int
    num_tokens: int
    cells: tuple[Cell, ...]

    def measure(self, cell: Cell, peer: Peer, seed: int) -> tuple[float, list[list[int]]]:
        """Tokens per second, or milliseconds; and the tokens of each prompt."""
        draws = random.Random(seed)
        prompts = [draws.choices(VOCABULARY, k=cell.prompt_tokens) for _ in range(cell.batch)]
        first_s, tokens = self._ask(peer, prompts, 1)
        if not cell.is_decode:
            return first_s * 1e3, tokens
        whole_s, tokens = self._ask(peer, prompts, self.num_tokens)
        return (self.num_tokens - 1) * cell.batch / (whole_s - first_s), tokens

    def _ask(
        self, peer: Peer, prompts: list[list[int]], num_tokens: int
    ) -> tuple[float, list[list[int]]]:
        before_s = own_cpu_s()
        answer = peer.ask(prompts, num_tokens)
        cpu_s = own_cpu_s() - before_s
        return cpu_s if self.threads == 1 else answer.seconds, answer.tokens


def measure(peers: list[Peer], clock: Clock, rounds: int) -> list[str]:
    """Rows of the table: medians, and the median of the ratios of rounds. One round warms up."""
    lines, same, total = [], 0, 0
    found: dict[Cell, tuple[list[float], list[float]]] = {cell: ([], []) for cell in clock.cells}
    for number in range(rounds + 1):
        for cell in clock.cells:
            answers = [clock.measure(cell, peer, seed=number) for peer in peers]
            for values, (value, _) in zip(found[cell], answers, strict=True):
                values += [value] if number else []
            for a, b in zip(*(tokens for _, tokens in answers), strict=True):
                same += sum(x == y for x, y in zip(a, b, strict=True))
                total += len(a)
    for cell in clock.cells:
        plain, int8 = found[cell]
        ratios = sorted(
            b / a if cell.is_decode else a / b for a, b in zip(plain, int8, strict=True)
        )
        lines.append(
            f"| {cell.title} | {statistics.median(plain):,.0f} | {statistics.median(int8):,.0f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |"
        )
    return [*lines, "", f"Free-running greedy tokens in common: {same / total:.1%}."]


def accuracy(folder: Path) -> list[str]:
    """What rounding the weights does to logits, in float32 by transformers: tests show that the
    engine answers as these numbers on every path.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draws = torch.Generator().manual_seed(0)
    size = (ACCURACY_ROWS, ACCURACY_TOKENS)
    ids = torch.randint(VOCABULARY.start, VOCABULARY.stop, size, generator=draws)
    exact = model(ids).logits.flatten(0, 1)
    narrow = model.bfloat16()(ids).logits.flatten(0, 1).float()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    for name, weight in model.named_parameters():
        if "_proj.weight" in name or name == "lm_head.weight":
            weight.copy_(quantise(weight, INT8).plain(torch.float32))
    rounded = model(ids).logits.flatten(0, 1)
    return [_apart("bfloat16 arithmetic", narrow, exact), _apart("int8 weights", rounded, exact)]


def _apart(what: str, logits: Tensor, exact: Tensor) -> str:
    error = (logits - exact).square().mean().sqrt() / exact.std()
    logprobs, wanted = logits.log_softmax(-1), exact.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - logprobs)).sum(-1).mean()
    agree = (logits.argmax(-1) == exact.argmax(-1)).float().mean()
    return f"| {what} | {error:.2%} | {divergence:.2g} | {agree:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--outputs", type=int, default=64, help="tokens of each decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", nargs="*", choices=MEASURED, default=tuple(MEASURED))
    parser.add_argument(
        "--formats",
        nargs=2,
        default=(PLAIN, INT8.value),
        help="of both engines, plain or of weights",
    )
    parser.add_argument("--no-accuracy", action="store_true")
    options = parser.parse_args()
    end_on_sigterm()
    dtype = DType(options.dtype)
    folder = options.work / f"m158-{dtype.value}"
    create_checkpoint(folder, getattr(torch, dtype.value))
    specs = [
        ours(form, folder, dtype.value, "tp=1", form.removeprefix(PLAIN), str(options.threads))
        for form in options.formats
    ]
    with ExitStack() as stack, OtherPrograms() as others:
        peers = [stack.enter_context(Peer(spec, options.work / "int8.log")) for spec in specs]
        clock = Clock(
            threads=options.threads,
            num_tokens=options.outputs,
            cells=tuple(MEASURED[name] for name in options.cells),
        )
        lines = measure(peers, clock, options.rounds)
    print(
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {this_machine()}; other programs took "
        f"{others.share:.0%} meanwhile; {options.threads} threads, {options.outputs} outputs, "
        f"{options.rounds} rounds in turn\n"
    )
    first, second = options.formats
    print(f"| | {first} | {second} | {second} is (times) |\n|---|---|---|---|")
    sizes = count_bytes(folder, dtype) if tuple(options.formats) == (PLAIN, INT8.value) else []
    print("\n".join([*sizes, *lines]), "\n")
    if not options.no_accuracy:
        print("| against float32 | logits' error | divergence | same choice |\n|---|---|---|---|")
        with torch.inference_mode():
            print("\n".join(accuracy(folder)))


if __name__ == "__main__":
    main()
