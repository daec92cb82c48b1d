"""What a model is, as its checkpoint's ``config.json`` states it; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.spec.errors import CheckpointError
from engine.spec.families.family import Family
from engine.spec.families.registry import get_family
from engine.spec.plan import ParallelPlan, padded_vocab_size, stage_layers


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
class RopeScaling:
    """Llama 3 frequency scaling (config key ``rope_scaling`` / ``rope_parameters``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


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
    qk_norm: bool = False
    dtype: DType = DType.FLOAT32
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @classmethod
    def from_dir(cls, model_dir: Path | str) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json`` where present).

        Raises:
            CheckpointError: no such file, no JSON, an unsupported family or rope type.
        """
        folder = Path(model_dir)
        raw = _read_json(folder / "config.json")
        path = folder / "generation_config.json"
        generation = _read_json(path) if path.exists() else {}
        return cls.from_json(raw, generation=generation, where=str(folder / "config.json"))

    @classmethod
    def from_json(
        cls, raw: dict[str, Any], *, generation: Mapping[str, Any] | None = None, where: str
    ) -> ModelConfig:
        """Build from the parsed ``config.json`` and, where there is one, the parsed
        ``generation_config.json``; ``where`` names the former in errors.
        """
        try:
            family = get_family(raw.get("model_type", ""))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        _refuse_unknown_math(raw, family, where)
        try:
            num_heads = int(raw["num_attention_heads"])
            hidden = int(raw["hidden_size"])
            rope_theta, rope_scaling = _read_rope(raw, where)
            return cls(
                model_type=family.model_type,
                num_layers=int(raw["num_hidden_layers"]),
                hidden_size=hidden,
                ffn_size=int(raw["intermediate_size"]),
                num_heads=num_heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
                head_dim=int(raw.get("head_dim") or hidden // num_heads),
                vocab_size=int(raw["vocab_size"]),
                max_positions=int(raw.get("max_position_embeddings", 2048)),
                rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=rope_theta,
                rope_scaling=rope_scaling,
                tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=bool(raw.get("attention_bias", family.qkv_bias)),
                qk_norm=family.qk_norm,
                dtype=_read_dtype(raw),
                eos_token_ids=_end_ids(raw, generation),
                bos_token_id=raw.get("bos_token_id"),
            )
        except KeyError as missing:
            raise CheckpointError(f"{where}: key {missing} is missing") from missing

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
        q_and_o = 2 * self.hidden_size * self.q_size // plan.tp
        kv_heads = max(1, self.num_kv_heads // plan.tp)
        kv = 2 * self.hidden_size * kv_heads * self.head_dim
        ffn = 3 * self.hidden_size * self.ffn_size // plan.tp
        vocab = padded_vocab_size(self.vocab_size, plan.stage_size) * self.hidden_size
        ends = [vocab // plan.tp]
        if not self.tie_embeddings:
            head = vocab // plan.stage_size
            ends = [ends[0] + head] if plan.pp == 1 else [ends[0], head]
        return (layers * (q_and_o + kv + ffn) + max(ends)) * dtype.num_bytes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a model folder has a {path.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds {type(parsed).__name__}, not an object")
    return parsed


def _read_rope(raw: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Rope base and scaling; newer files keep both under ``rope_parameters``."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope type {kind!r} is not supported (default, llama3)")
    return theta, RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_positions=int(parameters["original_max_position_embeddings"]),
    )


def _refuse_unknown_math(raw: dict[str, Any], family: Family, where: str) -> None:
    """Refuse what would load and then answer wrongly."""
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{where}: hidden_act {activation!r} is not supported (silu)")
    refusal = family.refusal(raw)
    if refusal is not None:
        raise CheckpointError(f"{where}: {refusal}")


def _read_dtype(raw: dict[str, Any]) -> DType:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    return DType(name) if name in set(DType) else DType.FLOAT32


def _end_ids(raw: Mapping[str, Any], generation: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Ids that end an output in either file; those outside the vocabulary never come."""
    found: list[int] = []
    for source in (raw, generation or {}):
        value = source.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(i for i in dict.fromkeys(map(int, found)) if 0 <= i < int(raw["vocab_size"]))
