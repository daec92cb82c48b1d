"""What one family of dense decoders has of its own; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RawConfig = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """The names of a checkpoint's modules, without the ``.weight`` or ``.bias`` at their end.

    Those of a layer stand behind ``layers`` and its number: ``model.layers.3.self_attn.q_proj``.
    Matrices are ``[out, in]``; q, k and v are apart, and so are gate and up.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layers: str = "model.layers"
    input_norm: str = "input_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    o: str = "self_attn.o_proj"
    post_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    def in_layer(self, layer: int, module: str) -> str:
        """The whole name of ``module`` in decoder layer ``layer``."""
        return f"{self.layers}.{layer}.{module}"


def windowed_attention(raw: RawConfig) -> str | None:
    """Refuses attention that sees the last tokens only."""
    return "sliding-window attention is not supported" if raw.get("use_sliding_window") else None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family as the value of one file.

    ``qkv_bias``: whether q, k and v have biases where ``config.json`` does not say
    (``attention_bias``). ``qk_norm``: whether each query and key head is normalized before the
    rotation. ``refusal`` reads a ``config.json`` and says what it asks for that the engine
    cannot compute, or None: such a model would load and then answer wrongly.
    """

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    names: TensorNames = field(default_factory=TensorNames)
    refusal: Callable[[RawConfig], str | None] = windowed_attention
