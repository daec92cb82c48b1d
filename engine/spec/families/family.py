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


# Where Qwen's files leave them out: the most layers that see all tokens, and the window's length.
DEFAULT_WINDOW_LAYERS = 28
DEFAULT_WINDOW = 4096
FULL_ATTENTION = "full_attention"


def windowed_attention(raw: RawConfig) -> str | None:
    """Refuses attention that sees the last tokens only; a window that no layer has is fine."""
    kinds = raw.get("layer_types")
    if isinstance(kinds, list):
        is_windowed = any(kind != FULL_ATTENTION for kind in kinds)
    else:
        layers, full = raw.get("num_hidden_layers"), raw.get("max_window_layers")
        full = DEFAULT_WINDOW_LAYERS if full is None else full
        has_window = raw.get("use_sliding_window") and raw.get("sliding_window", DEFAULT_WINDOW)
        is_all_full = isinstance(full, int) and isinstance(layers, int) and full >= layers
        is_windowed = bool(has_window) and not is_all_full
    return "sliding-window attention is not supported" if is_windowed else None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family as the value of one file.

    ``qkv_bias``: whether q, k and v have biases whatever ``config.json`` says; else it does
    (``attention_bias``, which is also the output matrix's). ``has_mlp_bias_key``: whether it may
    ask for biases of the feed-forward matrices (``mlp_bias``). ``qk_norm``: whether each query
    and key head is normalized before the rotation. ``defaults``: sizes that a ``config.json`` of
    this family may leave out. ``refusal`` reads a ``config.json`` and says what it asks for that
    the engine cannot compute, or None: such a model would load and then answer wrongly.
    ``own_keys``: keys that ``refusal`` has looked at, or that change nothing.
    """

    model_type: str
    qkv_bias: bool = False
    has_mlp_bias_key: bool = False
    qk_norm: bool = False
    defaults: Mapping[str, int] = field(default_factory=dict)
    names: TensorNames = field(default_factory=TensorNames)
    refusal: Callable[[RawConfig], str | None] = windowed_attention
    own_keys: frozenset[str] = frozenset()
