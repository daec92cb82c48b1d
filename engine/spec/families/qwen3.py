"""Qwen 3: each query and key head is normalized; ``head_dim`` is not hidden size over heads."""

from __future__ import annotations

from engine.spec.families.family import Family

QWEN3 = Family(model_type="qwen3", qk_norm=True)
