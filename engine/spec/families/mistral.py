"""Mistral, computed as Llama is; 7B v0.1 has a window, which its other releases leave null."""

from __future__ import annotations

from engine.spec.families.family import Family, RawConfig, windowed_attention

DEFAULT_POSITIONS = 131_072
# Where config.json has no such key; null is no window.
DEFAULT_WINDOW = 4096


def refused(raw: RawConfig) -> str | None:
    """Refuses a window shorter than the context, and biases, which no Mistral has."""
    if raw.get("attention_bias"):
        return "mistral models have no attention_bias"
    window = raw.get("sliding_window", DEFAULT_WINDOW)
    positions = raw.get("max_position_embeddings", DEFAULT_POSITIONS)
    if window is None or window is False:
        return windowed_attention({**raw, "use_sliding_window": False})
    is_number = isinstance(window, int) and isinstance(positions, int)
    if is_number and window >= positions:
        return None
    return (
        f"sliding_window={window} below max_position_embeddings={positions}: attention to the last "
        "tokens only is not supported; null is, and so are contexts within the window: set "
        f"max_position_embeddings to {window}"
    )


MISTRAL = Family(
    model_type="mistral",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": DEFAULT_POSITIONS},
    refusal=refused,
)
