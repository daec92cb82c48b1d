"""Shapes of the checkpoints that `gearshift model create` writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of a checkpoint. ``has_weights`` is False where only the shape is of use."""

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tokenizer_size: int
    max_positions: int
    rope: dict[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0}
    )
    dtype: str = "float32"
    has_weights: bool = True

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PRESETS = {
    # The model's vocabulary is the larger one, and no multiple of 2: ranks must pad it.
    "tiny": Preset(
        num_layers=4,
        hidden_size=64,
        ffn_size=128,
        num_heads=8,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=515,
        tokenizer_size=512,
        max_positions=4096,
    ),
    "small": Preset(
        num_layers=8,
        hidden_size=512,
        ffn_size=1408,
        num_heads=16,
        num_kv_heads=8,
        head_dim=32,
        vocab_size=4096,
        tokenizer_size=4096,
        max_positions=16_384,
    ),
    "llama-3.1-8b": Preset(
        num_layers=32,
        hidden_size=4096,
        ffn_size=14_336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        tokenizer_size=4096,
        max_positions=131_072,
        rope=LLAMA31_ROPE,
        dtype="bfloat16",
        has_weights=False,
    ),
    "llama-3.1-70b": Preset(
        num_layers=80,
        hidden_size=8192,
        ffn_size=28_672,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        tokenizer_size=4096,
        max_positions=131_072,
        rope=LLAMA31_ROPE,
        dtype="bfloat16",
        has_weights=False,
    ),
}
