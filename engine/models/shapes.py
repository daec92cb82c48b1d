"""The tensors of a checkpoint, by name and shape."""

from __future__ import annotations

from engine.spec.model import ModelConfig


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this model holds, with its shape."""
    names = model.family.names
    shapes = {
        f"{names.embedding}.weight": (model.vocab_size, model.hidden_size),
        f"{names.final_norm}.weight": (model.hidden_size,),
    }
    if not model.tie_embeddings:
        shapes[f"{names.head}.weight"] = (model.vocab_size, model.hidden_size)
    in_layer = _layer_shapes(model)
    for layer in range(model.num_layers):
        shapes |= {names.in_layer(layer, name): shape for name, shape in in_layer.items()}
    return shapes


def _layer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    names = model.family.names
    hidden, ffn, q_size, kv_size = (
        model.hidden_size,
        model.ffn_size,
        model.q_size,
        model.kv_size,
    )
    modules: dict[str, tuple[int, ...]] = {
        names.input_norm: (hidden,),
        names.post_norm: (hidden,),
        names.q: (q_size, hidden),
        names.k: (kv_size, hidden),
        names.v: (kv_size, hidden),
        names.o: (hidden, q_size),
        names.gate: (ffn, hidden),
        names.up: (ffn, hidden),
        names.down: (hidden, ffn),
    }
    if model.qk_norm:
        modules |= {names.q_norm: (model.head_dim,), names.k_norm: (model.head_dim,)}
    shapes = {f"{name}.weight": shape for name, shape in modules.items()}
    with_bias = [names.q, names.k, names.v] if model.qkv_bias else []
    with_bias += [names.o] if model.o_bias else []
    with_bias += [names.gate, names.up, names.down] if model.mlp_bias else []
    return shapes | {f"{name}.bias": modules[name][:1] for name in with_bias}


def layer_matrices(model: ModelConfig) -> frozenset[str]:
    """The names of all layers' matrices."""
    names = model.family.names
    matrices = [name for name, shape in _layer_shapes(model).items() if len(shape) > 1]
    return frozenset(
        names.in_layer(layer, name) for layer in range(model.num_layers) for name in matrices
    )


def ends(model: ModelConfig) -> tuple[str, str]:
    """The names of embedding and head."""
    names = model.family.names
    return f"{names.embedding}.weight", f"{names.head}.weight"
