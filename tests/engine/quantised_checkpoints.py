"""Checkpoints as tools that quantise publish them, made of plain ones with torch's operations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.loader import SINGLE_FILE

BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to quantise: a scale for all of a matrix, each row, or each block; ``entry`` is what
    ``config.json`` says of it, ``suffix`` names the scales.
    """

    entry: dict[str, Any]
    scales: str
    suffix: str = ".weight_scale"
    is_int8: bool = False
    has_input_scales: bool = False


def _compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    of_weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**of_weights, "strategy": strategy, **weights},
                "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _compressed_int8(**activations: Any) -> dict[str, Any]:
    entry = _compressed("channel", type="int") | {"format": "int-quantized"}
    entry["config_groups"]["group_0"]["input_activations"] |= activations
    return entry


KINDS = {
    "fp8-block": Kind(
        entry={
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head"],
        },
        scales="block",
        suffix=".weight_scale_inv",
    ),
    "fp8-tensor": Kind(
        entry={"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": None},
        scales="tensor",
        has_input_scales=True,
    ),
    "compressed-channel": Kind(entry=_compressed("channel"), scales="channel"),
    "compressed-tensor": Kind(entry=_compressed("tensor"), scales="tensor", has_input_scales=True),
    "compressed-block": Kind(
        entry=_compressed("block", block_structure=[BLOCK, BLOCK]), scales="block"
    ),
    "compressed-int8": Kind(
        entry=_compressed_int8(),
        scales="channel",
        is_int8=True,
    ),
}
# A CPU rounds activations, too, so it does not answer as the numbers of its weights alone.
W8A8 = Kind(
    entry=_compressed_int8(type="int", strategy="token", symmetric=True),
    scales="channel",
    is_int8=True,
)


def quantise_checkpoint(source: Path, target: Path, plain: Path, kind: Kind) -> None:
    """A quantised copy of ``source`` in ``target``, and in ``plain`` the numbers it stands for."""
    narrow: dict[str, Tensor] = {}
    wide: dict[str, Tensor] = {}
    for name, tensor in load_file(source / SINGLE_FILE).items():
        if "_proj.weight" not in name:
            narrow[name] = wide[name] = tensor
            continue
        values, scales, whole = _quantise(tensor, kind)
        module = name.removesuffix(".weight")
        narrow |= {name: values, module + kind.suffix: scales}
        if kind.has_input_scales:
            narrow[f"{module}.input_scale"] = torch.tensor(0.02)
        wide[name] = whole
    config = json.loads((source / "config.json").read_text())
    for folder, tensors, entry in (
        (target, narrow, {"quantization_config": kind.entry}),
        (plain, wide, {}),
    ):
        folder.mkdir(parents=True)
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | entry))


def _quantise(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales as stored, and the numbers both stand for."""
    rows, columns = weight.shape
    most = 127.0 if kind.is_int8 else 448.0
    if kind.scales == "tensor":
        scales = (weight.abs().max() / most).reshape(())
        wide = scales.expand(rows, columns)
    elif kind.scales == "channel":
        scales = weight.abs().amax(1, keepdim=True) / most
        wide = scales.expand(rows, columns)
    else:
        padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
        padded[:rows, :columns] = weight
        blocks = padded.view(len(padded) // BLOCK, BLOCK, -1, BLOCK)
        scales = blocks.abs().amax((1, 3)) / most
        wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    scaled = weight / wide
    values = scaled.round().to(torch.int8) if kind.is_int8 else scaled.to(torch.float8_e4m3fn)
    return values, scales, values.float() * wide
