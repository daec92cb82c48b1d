"""Models that tests of several packages name."""

from __future__ import annotations

from engine.spec.model import ModelConfig

MODEL = ModelConfig(
    model_type="llama",
    num_layers=2,
    hidden_size=64,
    ffn_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=512,
    max_positions=4096,
)
