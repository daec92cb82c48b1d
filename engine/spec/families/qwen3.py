"""Qwen 3: each query and key head is normalized; ``head_dim`` is not hidden size over heads."""

from __future__ import annotations

from engine.spec.families.family import Family

QWEN3 = Family(
    model_type="qwen3",
    qk_norm=True,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768, "head_dim": 128},
)
