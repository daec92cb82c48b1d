"""Llama 2 and 3.x, whose values are the defaults of a family."""

from __future__ import annotations

from engine.spec.families.family import Family

LLAMA = Family(model_type="llama", has_mlp_bias_key=True)
