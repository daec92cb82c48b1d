"""How an engine is set up; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from engine.spec.activations import activation_bytes
from engine.spec.errors import EngineError
from engine.spec.graphs import graph_bytes
from engine.spec.inventory import kv_bytes_of_rank
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Caps, Settings
from engine.spec.token_counts import count_bytes

# Nobody would serve over links that take more than a second per collective.
MOST_LATENCY_US = 1e6
# More threads than any host of CPU ranks has cores.
MOST_THREADS = 1024
# Larger steps take longer on the device than their launches take on the host.
MOST_GRAPH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class LinkEmulation:
    """Delay added to each collective on CPU ranks: latency plus bytes over bandwidth."""

    latency_us: float = 0.0
    gbps: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.latency_us <= MOST_LATENCY_US and 0 <= self.gbps < math.inf):
            raise EngineError(
                f"link latency_us={self.latency_us:g},gbps={self.gbps:g}: neither may be negative "
                f"or without end, and latency_us at most {MOST_LATENCY_US:g}"
            )

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
    """Where steps run. ``auto``: in process for one rank, else one process per rank.
    ``extension``: as an installed package does it."""

    AUTO = "auto"
    INLINE = "inline"
    PROCESS = "process"
    SIMULATED = "simulated"
    EXTENSION = "extension"


class Collectives(StrEnum):
    """How ranks exchange tensors. ``auto``: NCCL on CUDA, shared memory on CPU."""

    AUTO = "auto"
    SHM = "shm"
    GLOO = "gloo"
    NCCL = "nccl"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything an engine is started with.

    ``settings`` are the first policy's; ``envelope`` is the most that their caps may ever be
    raised to without a restart (KV and sequence tables are sized by it). KV memory per rank is
    ``num_kv_blocks`` blocks if given; else what ``kv_blocks_of`` says of the plan (devices that
    are not here); else what ``memory_utilization`` of ``device_memory_bytes`` leaves beside
    the weights and what steps hold (``step_bytes``); else ``kv_cache_bytes``.

    ``quantisation`` is what the layers of a plain checkpoint are quantised to as they load.
    ``overlap`` schedules one step ahead of the ranks, ``parallel_sampling`` spreads the sampled
    rows over the ranks, ``prefix_cache`` reuses KV blocks of equal beginnings; outputs are the same
    without them. ``spare_ranks`` processes wait, warmed up, to take a dead rank's place.
    ``executor_name`` is the entry point of ``gearshift.executors`` that an ``extension`` has.
    ``hardware`` names, for whoever asks, the hardware whose step times a simulated executor takes;
    ``start_s_of`` says how long ranks of a plan take to start there, while the engine serves.
    ``threads_per_rank`` compute on each CPU rank; None: what ``OMP_NUM_THREADS`` says, else cores
    over ranks. On CUDA, steps of up to ``max_graph_tokens`` run as CUDA graphs (0: none do).
    ``mode_table_path`` keeps the measured mode table between starts. ``step_timeout_s`` bounds
    steps of which nothing is known yet. ``coin_seed`` is for tests: modes flip by a coin (see
    ``ModeChooser``).
    """

    model_dir: Path
    settings: Settings = field(default_factory=Settings)
    envelope: Caps | None = None
    dtype: DType = DType.FLOAT32
    quantisation: WeightFormat | None = None
    device: str = "cpu"
    block_size: int = 16
    kv_cache_bytes: int = 256 * 2**20
    num_kv_blocks: int | None = None
    kv_blocks_of: Callable[[ParallelPlan], int] | None = None
    start_s_of: Callable[[ParallelPlan], float] | None = None
    has_rungs: bool = True
    device_memory_bytes: int | None = None
    memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_devices: int | None = None
    executor: ExecutorKind = ExecutorKind.AUTO
    executor_name: str | None = None
    hardware: str | None = None
    collectives: Collectives = Collectives.AUTO
    link: LinkEmulation | None = None
    start_timeout_s: float = 120.0
    step_timeout_s: float = 60.0
    return_logits: bool = False
    overlap: bool = True
    parallel_sampling: bool = True
    prefix_cache: bool = True
    spare_ranks: int = 0
    threads_per_rank: int | None = None
    max_graph_tokens: int = 512
    mode_table_path: Path | None = None
    coin_seed: int | None = None

    def __post_init__(self) -> None:
        if self.threads_per_rank is not None and not 1 <= self.threads_per_rank <= MOST_THREADS:
            raise EngineError(
                f"threads_per_rank={self.threads_per_rank}: must be from 1 to {MOST_THREADS}, or "
                "left out"
            )
        if not 0 <= self.max_graph_tokens <= MOST_GRAPH_TOKENS:
            raise EngineError(
                f"max_graph_tokens={self.max_graph_tokens}: must be from 0 (no CUDA graphs) to "
                f"{MOST_GRAPH_TOKENS}"
            )

    @property
    def paced_as(self) -> str | None:
        """The hardware that steps are paced as; None if a model runs."""
        if self.executor is not ExecutorKind.SIMULATED:
            return None
        return self.hardware or "unnamed hardware"

    @property
    def usable_device_bytes(self) -> int | None:
        """Bytes of each device that weights and KV may fill; None where KV memory is set."""
        if self.device_memory_bytes is None:
            return None
        return int(self.device_memory_bytes * self.memory_utilization)

    def has_graphs(self, plan: ParallelPlan) -> bool:
        """Whether steps of ``plan`` may run as CUDA graphs: on CUDA, where a rank is alone or NCCL
        joins it with others."""
        is_captured = self.collectives in (Collectives.AUTO, Collectives.NCCL)
        return self.device.startswith("cuda") and (is_captured or plan.replica_size == 1)

    @property
    def start_envelope(self) -> Caps:
        """The envelope; by default 256 sequences and 8,192 tokens, or the first caps if larger."""
        return self.envelope or Caps(
            max_num_seqs=max(256, self.settings.caps.max_num_seqs),
            max_num_batched_tokens=max(8192, self.settings.caps.max_num_batched_tokens),
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
    kv_bytes = kv_bytes_of_rank(
        plan,
        model,
        config.dtype,
        block_size=config.block_size,
        usable_bytes=config.usable_device_bytes,
        kv_bytes=config.kv_cache_bytes,
        step_bytes=step_bytes(config, model, plan),
    )
    return kv_bytes // (model.kv_bytes_per_token(plan, config.dtype) * config.block_size)


def step_bytes(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> int:
    """What a rank of a device holds beside weights and KV at its fullest: activations, the token
    counts of penalties, CUDA graphs. The device's context and fragmentation are not in it.
    """
    envelope, num_bytes = config.start_envelope, config.dtype.num_bytes
    held = activation_bytes(
        model,
        plan,
        envelope,
        num_bytes=num_bytes,
        samples_in_parallel=config.parallel_sampling,
    )
    held += count_bytes(model.vocab_size, envelope.max_num_seqs)
    if not config.has_graphs(plan):
        return held
    return held + graph_bytes(model, plan, config.max_graph_tokens, num_bytes=num_bytes)
