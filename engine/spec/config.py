"""What a model is and how an engine is set up; read from files, checked here, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.spec.errors import CheckpointError, EngineError, PlanError
from engine.spec.plan import (
    DEFAULT_SHIFT_THRESHOLD,
    ParallelPlan,
    padded_vocab_size,
    stage_layers,
)

SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")


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
    """Shape of a dense Llama-family decoder, as its Hugging Face ``config.json`` states it."""

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
        generation = folder / "generation_config.json"
        eos = _read_json(generation).get("eos_token_id") if generation.exists() else None
        return cls.from_json(raw, eos_token_id=eos, where=str(folder / "config.json"))

    @classmethod
    def from_json(
        cls, raw: dict[str, Any], *, eos_token_id: int | list[int] | None = None, where: str
    ) -> ModelConfig:
        """Build from the parsed ``config.json``; ``where`` names the source in errors."""
        model_type = raw.get("model_type", "")
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise CheckpointError(
                f"{where}: model_type {model_type!r} is not supported; "
                f"supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
            )
        _refuse_unknown_math(raw, where)
        try:
            num_heads = int(raw["num_attention_heads"])
            hidden = int(raw["hidden_size"])
            rope_theta, rope_scaling = _read_rope(raw, where)
            return cls(
                model_type=model_type,
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
                qkv_bias=bool(raw.get("attention_bias", model_type == "qwen2")),
                qk_norm=model_type == "qwen3",
                dtype=_read_dtype(raw),
                eos_token_ids=_as_ids(
                    eos_token_id if eos_token_id is not None else raw.get("eos_token_id")
                ),
                bos_token_id=raw.get("bos_token_id"),
            )
        except KeyError as missing:
            raise CheckpointError(f"{where}: key {missing} is missing") from missing

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


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Limits the scheduler keeps; all are hot knobs within the start-up envelope.

    ``max_step_ms`` lets the scheduler size prefill chunks so that a mixed step fits it;
    ``max_queue`` is the admission limit on waiting requests. None = no limit.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_step_ms: float | None = None
    max_queue: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_step_ms is not None and not 0 < self.max_step_ms < math.inf:
            raise EngineError(
                f"max_step_ms={self.max_step_ms}: must be above 0 and finite, or left out"
            )
        if self.max_queue is not None and self.max_queue < 0:
            raise EngineError(f"max_queue={self.max_queue}: must be at least 0, or left out")


@dataclass(frozen=True, kw_only=True)
class LinkEmulation:
    """Delay added to each collective on CPU ranks: latency plus bytes over bandwidth."""

    latency_us: float = 0.0
    gbps: float = 0.0

    def __post_init__(self) -> None:
        if self.latency_us < 0 or self.gbps < 0:
            raise EngineError(f"link {self}: latency_us and gbps must not be negative")

    @classmethod
    def parse(cls, text: str) -> LinkEmulation:
        """Read ``latency_us=20,gbps=100`` (gigabits per second; 0 = unlimited).

        Raises:
            EngineError: an unknown word or a value that is no number.
        """
        values: dict[str, float] = {}
        for part in text.split(","):
            word, _, raw = part.strip().partition("=")
            if word not in ("latency_us", "gbps"):
                raise EngineError(
                    f"link {text!r}: unknown word {word!r}; use latency_us=..,gbps=.."
                )
            try:
                values[word] = float(raw)
            except ValueError as error:
                raise EngineError(f"link {text!r}: {raw!r} is not a number") from error
        return cls(**values)

    def delay_s(self, num_bytes: int) -> float:
        """Seconds one collective that moves ``num_bytes`` per rank is delayed."""
        transfer = num_bytes * 8 / (self.gbps * 1e9) if self.gbps else 0.0
        return self.latency_us * 1e-6 + transfer


class ExecutorKind(StrEnum):
    """Where steps run. ``auto``: in process for one rank, else one process per rank."""

    AUTO = "auto"
    INLINE = "inline"
    PROCESS = "process"
    SIMULATED = "simulated"


class Collectives(StrEnum):
    """How ranks exchange tensors. ``auto``: NCCL on CUDA, shared memory on CPU."""

    AUTO = "auto"
    SHM = "shm"
    GLOO = "gloo"
    NCCL = "nccl"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything an engine is started with.

    ``caps`` is the first policy's; ``envelope`` the most it may ever be raised to without a
    restart (KV and sequence tables are sized by it). KV memory per rank is ``num_kv_blocks``
    blocks if given; else what ``kv_blocks_of`` says of the plan (devices that are not here);
    else what ``memory_utilization`` of ``device_memory_bytes`` leaves beside the weights; else
    ``kv_cache_bytes``.

    ``overlap`` schedules one step ahead of the ranks, ``parallel_sampling`` spreads the sampled
    rows over the ranks, ``prefix_cache`` reuses KV blocks of equal beginnings; outputs are the
    same without them. ``spare_ranks`` processes wait, warmed up, to take a dead rank's place.
    ``mode_table_path`` keeps the measured mode table between starts. ``step_timeout_s`` bounds
    steps of which nothing is known yet.
    """

    model_dir: Path
    plan: ParallelPlan = field(default_factory=ParallelPlan)
    threshold_tokens: int = DEFAULT_SHIFT_THRESHOLD
    caps: Caps = field(default_factory=Caps)
    envelope: Caps | None = None
    mode: str = "auto"
    dtype: DType = DType.FLOAT32
    device: str = "cpu"
    block_size: int = 16
    kv_cache_bytes: int = 256 * 2**20
    num_kv_blocks: int | None = None
    kv_blocks_of: Callable[[ParallelPlan], int] | None = None
    device_memory_bytes: int | None = None
    memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_devices: int | None = None
    executor: ExecutorKind = ExecutorKind.AUTO
    collectives: Collectives = Collectives.AUTO
    link: LinkEmulation | None = None
    start_timeout_s: float = 120.0
    step_timeout_s: float = 60.0
    return_logits: bool = False
    overlap: bool = True
    parallel_sampling: bool = True
    prefix_cache: bool = True
    spare_ranks: int = 0
    mode_table_path: Path | None = None

    @property
    def start_envelope(self) -> Caps:
        """The envelope, by default four times the first caps' sequences and tokens."""
        return self.envelope or Caps(
            max_num_seqs=max(256, self.caps.max_num_seqs),
            max_num_batched_tokens=max(8192, self.caps.max_num_batched_tokens),
        )


def num_kv_blocks(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> int:
    """KV blocks each rank holds under ``plan``.

    Raises:
        PlanError: weights and one KV block do not fit the device, with the numbers.
    """
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    if config.kv_blocks_of is not None:
        return config.kv_blocks_of(plan)
    block_bytes = model.kv_bytes_per_token(plan, config.dtype) * config.block_size
    if config.device_memory_bytes is None:
        kv_bytes, beside = config.kv_cache_bytes, "the KV cache size"
    else:
        weight_bytes = model.weight_bytes_per_rank(plan, config.dtype)
        usable = int(config.device_memory_bytes * config.memory_utilization)
        kv_bytes = usable - weight_bytes
        beside = f"{usable} usable bytes of the device minus {weight_bytes} bytes of weights"
    if kv_bytes < block_bytes:
        raise PlanError(
            f"plan {plan}: one KV block needs {block_bytes} bytes per rank, "
            f"but {beside} leaves {max(kv_bytes, 0)}; use more ranks or a smaller dtype"
        )
    return kv_bytes // block_bytes


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


def _refuse_unknown_math(raw: dict[str, Any], where: str) -> None:
    """Refuse what would load and then answer wrongly."""
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{where}: hidden_act {activation!r} is not supported (silu)")
    if raw.get("use_sliding_window"):
        raise CheckpointError(f"{where}: sliding-window attention is not supported")


def _read_dtype(raw: dict[str, Any]) -> DType:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    return DType(name) if name in set(DType) else DType.FLOAT32


def _as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
