"""The checkpoint that every peer loads: a Llama of 158 M parameters with random weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.create import create_model

SEED = 0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


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
