"""Qwen 2 and 2.5: biases on q, k and v, of which their ``config.json`` says nothing."""

from __future__ import annotations

from engine.spec.families.family import Family

QWEN2 = Family(
    model_type="qwen2",
    qkv_bias=True,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768},
    # These models always behave as if it were there, for q, k and v only.
    own_keys=frozenset({"attention_bias"}),
)
