"""Llama 2 and 3.x: the family the others are told apart from."""

from __future__ import annotations

from engine.spec.families.family import Family

LLAMA = Family(model_type="llama", has_mlp_bias_key=True)
