"""The checkpoint that every peer loads: a Llama of 158 M parameters with random weights; and the
same with int8 layers, as tools that quantise publish them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.create import create_model
from engine.models.loader import SINGLE_FILE
from engine.parallel.quantised import quantise
from engine.spec.quantisation import WeightFormat

SEED = 0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
# A scale for each output. Rows are rounded to int8 too, as they come: so vLLM multiplies.
COMPRESSED_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**INT8, "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}


def create_checkpoint(folder: Path, dtype: torch.dtype) -> None:
    """Write the model (hidden 1,024, FFN 2,816, 12 layers, 16 query and 8 KV heads of 64,
    vocabulary 16,384, tied) with a tokenizer, unless ``folder`` holds it.
    """
    if (folder / "config.json").exists():
        return
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "small"
        create_model(source, preset="small")
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy(source / name, folder / name)
    # A decorator of transformers hides the method's own types.
    model = LlamaForCausalLM(config).to(dtype)  # type: ignore[arg-type]
    model.save_pretrained(folder)


def create_int8_checkpoint(source: Path) -> Path:
    """The checkpoint at ``source`` with the layers' matrices in int8 (compressed-tensors, w8a8),
    beside it, unless it is there.
    """
    folder = source.with_name(f"{source.name}-int8")
    if (folder / "config.json").exists():
        return folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tensors = {}
    for name, tensor in load_file(source / SINGLE_FILE).items():
        tensors[name] = tensor
        if name.endswith("_proj.weight"):
            narrow = quantise(tensor, WeightFormat.INT8)
            tensors[name] = narrow.values
            tensors[f"{name}_scale"] = narrow.scales.t().contiguous()
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = COMPRESSED_INT8
    (folder / "config.json").write_text(json.dumps(config))
    return folder
