"""Whole steps of an 8B-shaped model, with CUDA graphs and without, beside their floors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_check.model import BLOCK_SIZE, Steps, StepTime
from benchmarks.gpu_check.timing import Ceilings
from engine.spec.model import ModelConfig

DECODES = ((1, 1024), (32, 1024), (128, 1024), (128, 2048))
PREFILLS = ((8192, 0), (2048, 6144), (256, 4096))
NUM_BLOCKS = 128 * (2048 // BLOCK_SIZE + 4)
DECODE_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One kind of step: its floor, and how long it took with graphs and without."""

    name: str
    floor_s: float
    floor_of: str
    graphs: StepTime
    eager: StepTime

    @property
    def share(self) -> float:
        """Of the floor's ceiling, by the clock, with graphs."""
        return self.floor_s / self.graphs.clock_s


def decode_bytes(model: ModelConfig, num_seqs: int, context: int) -> int:
    """What one decode step must read: weights but for the embedding, and each sequence's cache."""
    return layer_bytes(model, num_seqs, context) * model.num_layers + 2 * (
        model.vocab_size * model.hidden_size
    )


def layer_bytes(model: ModelConfig, num_seqs: int, context: int) -> int:
    """What one layer of a decode step must read, in 16-bit numbers."""
    return 2 * (layer_params(model) + 2 * num_seqs * context * model.kv_size)


def layer_params(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer."""
    heads = model.q_size + 2 * model.kv_size
    return model.hidden_size * (heads + model.q_size + 3 * model.ffn_size)


def prefill_flops(model: ModelConfig, new: int, context: int) -> float:
    """Operations of a step with ``new`` tokens after ``context``, of which one is sampled."""
    pairs = new * context + new * (new + 1) / 2
    per_layer = 2 * new * layer_params(model) + 4 * pairs * model.q_size
    return float(model.num_layers * per_layer + 2 * model.vocab_size * model.hidden_size)


def measure_steps(folder: Path, model: ModelConfig, ceilings: Ceilings) -> Iterator[StepRow]:
    """Every step of the table; two runners, one after the other."""
    times: list[list[StepTime]] = []
    for max_graph_tokens in (512, 0):
        steps = Steps(folder, model, num_kv_blocks=NUM_BLOCKS, max_graph_tokens=max_graph_tokens)
        times.append(
            [steps.decode(*shape, steps=DECODE_STEPS) for shape in DECODES]
            + [steps.prefill(*shape) for shape in PREFILLS]
        )
        del steps
        gc.collect()
        torch.cuda.empty_cache()
    names = [f"decode, {seqs} x {context:,}" for seqs, context in DECODES]
    names += [f"prefill of {new:,} after {context:,}" for new, context in PREFILLS]
    floors = [
        (1e-6 * ceilings.floor_us(num_bytes=decode_bytes(model, *shape)), "bandwidth")
        for shape in DECODES
    ] + [
        (1e-6 * ceilings.floor_us(flops=prefill_flops(model, *shape)), "products")
        for shape in PREFILLS
    ]
    for name, (floor_s, floor_of), graphs, eager in zip(names, floors, *times, strict=True):
        yield StepRow(name=name, floor_s=floor_s, floor_of=floor_of, graphs=graphs, eager=eager)
