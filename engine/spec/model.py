"""What a model is, as its checkpoint's ``config.json`` states it; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.spec.config_keys import check_keys
from engine.spec.errors import CheckpointError
from engine.spec.families.family import Family
from engine.spec.families.registry import get_family
from engine.spec.plan import ParallelPlan, padded_vocab_size, stage_layers
from engine.spec.quantisation import Quantisation, WeightFormat, read_quantisation
from engine.spec.reader import ConfigReader, read_json_object
from engine.spec.rope import DEFAULT_THETA, Rope, RopeScaling, read_rope

MAX_LAYERS = 10_000


class DType(StrEnum):
    """Number formats the engine computes in; float64 is for tests of equality."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def num_bytes(self) -> int:
        return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[self.value]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a dense decoder, as its Hugging Face ``config.json`` states it."""

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    quantisation: Quantisation | None = None
    dtype: DType = DType.FLOAT32
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @classmethod
    def from_dir(cls, model_dir: Path | str, *, shape_only: bool = False) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json`` where present).

        With ``shape_only``, for predictions that need nothing else, an unknown kind of rope and any
        kind of quantised weights are let through, and the result does not mention them.

        Raises:
            CheckpointError: no such file, no JSON, an unsupported family, a key that is not
                known, or a value that is wrong.
        """
        folder = Path(model_dir)
        raw = read_json_object(folder / "config.json")
        path = folder / "generation_config.json"
        return cls.from_json(
            raw,
            generation=read_json_object(path) if path.exists() else {},
            where=str(folder / "config.json"),
            shape_only=shape_only,
        )

    @classmethod
    def from_json(
        cls,
        raw: dict[str, Any],
        *,
        generation: Mapping[str, Any] | None = None,
        where: str,
        shape_only: bool = False,
    ) -> ModelConfig:
        """Build from the parsed ``config.json`` and, where there is one, the parsed
        ``generation_config.json``; ``where`` names the former in errors.
        """
        config = ConfigReader(raw=raw, where=where)
        try:
            family = get_family(config.word("model_type", ""))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        _refuse_unknown_math(config, family, shape_only=shape_only)
        num_heads = config.integer("num_attention_heads")
        num_kv_heads = _kv_heads(config, family, num_heads)
        hidden = config.integer("hidden_size")
        head_dim = config.integer("head_dim", family.defaults.get("head_dim", hidden // num_heads))
        if head_dim % 2:
            raise CheckpointError(f"{where}: a head of {head_dim} dimensions cannot be rotated")
        vocab_size = config.integer("vocab_size")
        max_positions = config.integer(
            "max_position_embeddings", family.defaults.get("max_position_embeddings", 2048)
        )
        rope = Rope(theta=DEFAULT_THETA, scaling=None, max_positions=max_positions)
        try:
            rope = read_rope(config, head_dim=head_dim, max_positions=max_positions)
        except CheckpointError:
            if not shape_only:
                raise
        has_attention_bias = not family.qkv_bias and config.flag("attention_bias")
        return cls(
            model_type=family.model_type,
            num_layers=config.integer("num_hidden_layers", maximum=MAX_LAYERS),
            hidden_size=hidden,
            ffn_size=config.integer("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_positions=rope.max_positions,
            rms_eps=config.number("rms_norm_eps", 1e-6, above=0),
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            tie_embeddings=config.flag("tie_word_embeddings"),
            qkv_bias=family.qkv_bias or has_attention_bias,
            o_bias=has_attention_bias,
            mlp_bias=family.has_mlp_bias_key and config.flag("mlp_bias"),
            qk_norm=family.qk_norm,
            quantisation=None if shape_only else read_quantisation(config),
            dtype=_read_dtype(config),
            eos_token_ids=_end_ids(config, generation or {}, vocab_size),
            bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        )

    @property
    def family(self) -> Family:
        """What models of this ``model_type`` have in common.

        Raises:
            CheckpointError: the engine runs no such family.
        """
        return get_family(self.model_type)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def context_tokens(self, max_model_len: int | None) -> int:
        """The longest sequence: ``max_model_len``, or every position where that is None or more."""
        return min(max_model_len or self.max_positions, self.max_positions)

    @property
    def layer_params(self) -> int:
        """Parameters of one decoder layer's matrices (norms and biases left out)."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        return attention + 3 * self.hidden_size * self.ffn_size

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding and, where untied, the head."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def num_params(self) -> int:
        return self.num_layers * self.layer_params + self.embedding_params

    def kv_heads_per_rank(self, plan: ParallelPlan) -> int:
        """KV heads each rank caches: repeated when there are fewer than sp*tp."""
        return max(1, self.num_kv_heads // plan.stage_size)

    def kv_bytes_per_token(self, plan: ParallelPlan, dtype: DType) -> int:
        """KV cache bytes of one token on the rank with the most layers."""
        layers = max(len(r) for r in stage_layers(self.num_layers, plan.pp))
        return 2 * layers * self.kv_heads_per_rank(plan) * self.head_dim * dtype.num_bytes

    def weight_bytes_per_rank(self, plan: ParallelPlan, dtype: DType) -> int:
        """Bytes of the matrices on the fullest rank: base shards; Shift adds none.

        KV heads are repeated where tp exceeds them. Both modes share the head, cut over sp*tp;
        a tied one is the embedding, cut over tp.
        """
        layers = max(len(r) for r in stage_layers(self.num_layers, plan.pp))
        rows = padded_vocab_size(self.vocab_size, plan.stage_size)
        ends = [rows // plan.tp * self.hidden_size * dtype.num_bytes]
        found = self.quantisation
        has_head = found is not None and found.has_head
        if not self.tie_embeddings or has_head:
            head_rows = rows // plan.stage_size
            head = head_rows * self.hidden_size * dtype.num_bytes
            if found is not None and has_head and found.is_kept:
                head = found.matrix_bytes(head_rows, self.hidden_size, cut=0)
            ends = [ends[0] + head] if plan.pp == 1 else [ends[0], head]
        return layers * self._layer_bytes(plan, dtype) + max(ends)

    def quantised(self, form: WeightFormat) -> ModelConfig:
        """The same model with its layers quantised in ``form`` as they load, unless they already
        are; with int8, rows are rounded or not as ``form`` says.

        Raises:
            CheckpointError: the checkpoint is quantised in another format.
        """
        found = self.quantisation
        if found is None:
            return replace(self, quantisation=Quantisation(format=form, at_load=True))
        if found.format.is_int8 and form.is_int8:
            return replace(self, quantisation=replace(found, format=form))
        if found.format is not form:
            raise CheckpointError(
                f"the checkpoint's weights are in {found.format} already, and are not "
                f"quantised again in {form}; leave --quantization out"
            )
        return self

    def holding(self, *, is_kept: bool, has_head: bool = False) -> ModelConfig:
        """The same quantised model as held by ranks that keep its weights (or make them plain)."""
        assert self.quantisation is not None, "a plain model is held as it is"
        held = replace(self.quantisation, is_kept=is_kept, has_head=has_head)
        return replace(self, quantisation=held)

    def column_cuts(self, plan: ParallelPlan) -> dict[str, int]:
        """The narrowest pieces, in columns, into which the rungs of ``plan`` cut matrices whose
        inputs are split, by the matrix; none where they stay whole.
        """
        finest = plan.stage_size if plan.shift else plan.tp
        if finest == 1:
            return {}
        names = self.family.names
        return {names.o: self.q_size // finest, names.down: self.ffn_size // finest}

    def _layer_bytes(self, plan: ParallelPlan, dtype: DType) -> int:
        """Bytes of one layer's matrices on one rank."""
        names, hidden, tp = self.family.names, self.hidden_size, plan.tp
        kv_rows = max(1, self.num_kv_heads // tp) * self.head_dim
        cuts = self.column_cuts(plan)
        matrices = [
            ((names.q, names.k, names.v), self.q_size // tp + 2 * kv_rows, hidden),
            ((names.o,), hidden, self.q_size // tp),
            ((names.gate, names.up), 2 * self.ffn_size // tp, hidden),
            ((names.down,), hidden, self.ffn_size // tp),
        ]
        total = 0
        for modules, rows, columns in matrices:
            found = self.quantisation
            if found is None or not found.is_kept or not found.covers(self._in_layers(modules)):
                total += rows * columns * dtype.num_bytes
            else:
                total += found.matrix_bytes(rows, columns, cut=cuts.get(modules[0], 0))
        return total

    def _in_layers(self, modules: tuple[str, ...]) -> list[str]:
        names = self.family.names
        return [
            names.in_layer(layer, module) for layer in range(self.num_layers) for module in modules
        ]


def _refuse_unknown_math(config: ConfigReader, family: Family, *, shape_only: bool) -> None:
    """Refuse what would load and then answer wrongly."""
    activation = config.word("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{config.where}: hidden_act {activation!r} is not supported (silu)")
    if not family.has_mlp_bias_key and config.flag("mlp_bias"):
        raise CheckpointError(f"{config.where}: {family.model_type} models have no mlp_bias")
    refusal = family.refusal(config.raw)
    if refusal is not None:
        raise CheckpointError(f"{config.where}: {refusal}")
    check_keys(config.raw, family, config.where, may_be_quantised=shape_only)


def _kv_heads(config: ConfigReader, family: Family, num_heads: int) -> int:
    """Null means as many as query heads; a key that is left out, the family's own number."""
    default = num_heads
    if "num_key_value_heads" not in config.raw:
        default = family.defaults.get("num_key_value_heads", num_heads)
    found = config.integer("num_key_value_heads", default)
    if num_heads % found:
        raise CheckpointError(
            f"{config.where}: {num_heads} query heads do not divide by {found} KV heads"
        )
    return found


def _read_dtype(config: ConfigReader) -> DType:
    key = "torch_dtype" if config.find("dtype") is None else "dtype"
    name = config.word(key, "float32").removeprefix("torch.")
    if name not in set(DType):
        known = ", ".join(DType)
        raise CheckpointError(
            f"{config.where}: {key} {name!r} is not supported; supported are {known}"
        )
    return DType(name)


def _end_ids(
    config: ConfigReader, generation: Mapping[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """Ids that end an output in either file; those outside the vocabulary never come."""
    other = ConfigReader(raw=generation, where=f"{config.where}: generation_config.json")
    found = (*config.token_ids("eos_token_id"), *other.token_ids("eos_token_id"))
    return tuple(token_id for token_id in dict.fromkeys(found) if 0 <= token_id < vocab_size)
