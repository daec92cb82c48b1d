"""Question: what do one, two and three bytes a number of activations change in a model's logits?

    python -m benchmarks.int8_rows --work DIR [--rows 8] [--tokens 128]

The checkpoint of :mod:`benchmarks.peers` by transformers in bfloat16, the products of its layers
replaced by the engine's compiled ones with int8 weights, whose rows are written in so many bytes;
the head stays plain. Then the same function with outliers, as trained models have them: some
channels of each norm as much larger as their columns of the weights behind it are smaller.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.__main__ import VOCABULARY
from benchmarks.peers.checkpoint import create_checkpoint
from engine.parallel.int8 import PackedInt8, best_way
from engine.parallel.quantised import quantise
from engine.spec.quantisation import WeightFormat
from tuner.spec.machine import this_machine

INT8 = WeightFormat.INT8
DIGITS = (3, 2, 1)
NUM_OUTLIERS = 4
OUTLIERS = (1, 16, 128)


class Int8Linear(nn.Module):
    """``weight[outputs, inputs]`` in int8 times rows in ``digits`` bytes a number."""

    def __init__(self, weight: Tensor, digits: int) -> None:
        super().__init__()
        self._product = PackedInt8(quantise(weight, INT8), digits=digits)

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., inputs]`` -> ``[..., outputs]``."""
        found: Tensor = self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return found


def read(folder: Path, outlier: int, dtype: torch.dtype) -> Any:
    """The model with norms' outliers ``outlier`` times as large, its numbers those of bfloat16."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, behind in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight[:NUM_OUTLIERS] *= outlier
            for linear in behind:
                linear.weight[:, :NUM_OUTLIERS] /= outlier
    return model.to(dtype)


def with_int8(model: Any, digits: int | None) -> Any:
    """``model`` with int8 weights in its layers; None: made plain again, so that all is whole."""
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, nn.Linear):
                    continue
                if digits is None:
                    linear.weight.copy_(quantise(linear.weight, INT8).plain(linear.weight.dtype))
                else:
                    setattr(block, name, Int8Linear(linear.weight, digits))
    return model


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """f32[positions, vocabulary]."""
    found: Tensor = model(ids).logits
    return found.flatten(0, 1).float()


def apart(logits: Tensor, wanted: Tensor) -> str:
    """Error of the logits by their spread, divergence, and how often the choice is the same."""
    error = (logits - wanted).square().mean().sqrt() / wanted.std()
    mine, theirs = logits.log_softmax(-1), wanted.log_softmax(-1)
    divergence = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    same = (logits.argmax(-1) == wanted.argmax(-1)).float().mean()
    return f"{error:.3%} | {divergence:.2g} | {same:.1%}"


def measure(folder: Path, outlier: int, ids: Tensor) -> list[str]:
    """The table's lines for outliers of one size."""
    narrow = torch.bfloat16
    exact = logits_of(read(folder, outlier, torch.float32), ids)
    whole = logits_of(with_int8(read(folder, outlier, torch.float32), None), ids)
    found = {
        "bfloat16, plain weights": logits_of(read(folder, outlier, narrow), ids),
        "float32, int8 weights": whole,
        "bfloat16, int8 weights, no bytes": logits_of(
            with_int8(read(folder, outlier, narrow), None), ids
        ),
        **{
            f"bfloat16, int8 weights, {digits} byte{'s' if digits > 1 else ''}": logits_of(
                with_int8(read(folder, outlier, narrow), digits), ids
            )
            for digits in DIGITS
        },
    }
    return [
        f"| {outlier} | {name} | {apart(logits, exact)} | {apart(logits, whole)} |"
        for name, logits in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    folder = options.work / "m158-bfloat16"
    create_checkpoint(folder, torch.bfloat16)
    draws = torch.Generator().manual_seed(0)
    size = (options.rows, options.tokens)
    ids = torch.randint(VOCABULARY.start, VOCABULARY.stop, size, generator=draws)
    print(
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {this_machine()}; products by "
        f"{best_way().name.lower()}; {ids.numel()} positions of random tokens, seed 0\n"
    )
    print(
        "| outliers | what | error against float32 | divergence | same choice "
        "| error against float32 with int8 weights | divergence | same choice |\n"
        + "|---" * 8
        + "|"
    )
    with torch.inference_mode():
        for outlier in OUTLIERS:
            print("\n".join(measure(folder, outlier, ids)), flush=True)


if __name__ == "__main__":
    main()
