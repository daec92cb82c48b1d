"""What an engine may use: how many ranks, and how much memory; no torch.

A plan is checked against it before anything starts: by the engine, and by a control plane, which
has it from the engine's registration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import msgspec

from engine.spec.errors import EngineError, PlanError
from engine.spec.feasible import check_plan
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan

# No host has more devices, and an engine is one process on one host.
MOST_RANKS = 1024
# On CPU, ranks stand in for devices: a node's worth may be started on few cores.
LEAST_CPU_RANKS = 8
# What a rank process on CPU holds before weights and KV (torch and its buffers).
RANK_PROCESS_BYTES = 200 * 2**20


class RankKind(StrEnum):
    """What ranks run on."""

    CPU = "cpu"
    CUDA = "cuda"
    PACED = "paced"

    @property
    def way_out(self) -> str:
        """What helps where a plan has more ranks than there may be."""
        match self:
            case RankKind.CPU:
                return "choose a smaller plan, or start the engine with a higher --max-devices"
            case RankKind.CUDA | RankKind.PACED:
                return "choose a smaller plan"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The most that the plans of one engine may use.

    Memory is either that of each device (``device_bytes``, usable for weights and KV), or that of
    the machine (``memory_bytes``, shared by all ranks, each with ``kv_bytes`` or ``num_kv_blocks``
    of KV). None where it is not known or does not count.

    Raises:
        EngineError: a number of ranks that no host has, or a size below 1.
    """

    kind: RankKind
    max_ranks: int
    dtype: DType = DType.FLOAT32
    block_size: int = 16
    num_kv_blocks: int | None = None
    kv_bytes: int | None = None
    device_bytes: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_ranks <= MOST_RANKS:
            raise EngineError(f"max_ranks={self.max_ranks}: must be from 1 to {MOST_RANKS}")
        for name in ("block_size", "num_kv_blocks", "kv_bytes", "device_bytes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineError(f"{name}={value}: must be at least 1")

    def check(self, plan: ParallelPlan, model: ModelConfig) -> None:
        """Refuse a plan that the model cannot run, or that there are no devices or memory for.

        Raises:
            PlanError: with the numbers and the way out.
        """
        check_plan(plan, model)
        self.check_ranks(plan)
        self._check_kv(plan, model)
        self._check_memory(plan, model)

    def check_ranks(self, plan: ParallelPlan) -> None:
        """The part of :meth:`check` that needs no model."""
        check_ranks(plan, self.max_ranks, way_out=self.kind.way_out)

    def has_room(self, parts: Iterable[tuple[ParallelPlan, int]], model: ModelConfig) -> bool:
        """Whether so many replicas of each plan fit side by side; each alone was checked."""
        parts = [(plan.replica, count) for plan, count in parts if count]
        if sum(plan.replica_size * count for plan, count in parts) > self.max_ranks:
            return False
        if self.memory_bytes is None:
            return True
        needed = sum(
            self._bytes_of_rank(plan, model) * plan.replica_size * count for plan, count in parts
        )
        return needed <= self.memory_bytes

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value, "dtype": self.dtype.value}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Inventory:
        """Read what :meth:`to_json` wrote.

        Raises:
            EngineError: an unknown key or a value that cannot be.
        """
        try:
            return msgspec.convert(document, cls)
        except msgspec.ValidationError as error:
            raise EngineError(f"inventory: {error}") from error

    def _check_kv(self, plan: ParallelPlan, model: ModelConfig) -> None:
        """One KV block has to fit beside the weights."""
        if self.device_bytes is None and self.kv_bytes is None:
            return
        kv_bytes_of_rank(
            plan,
            model,
            self.dtype,
            block_size=self.block_size,
            usable_bytes=self.device_bytes,
            kv_bytes=self.kv_bytes or 0,
        )

    def _check_memory(self, plan: ParallelPlan, model: ModelConfig) -> None:
        """All ranks have to fit the machine's memory."""
        if self.memory_bytes is None:
            return
        each = self._bytes_of_rank(plan, model)
        if each * plan.world_size > self.memory_bytes:
            raise PlanError(
                f"plan {plan}: {plan.world_size} ranks of {each / 1e9:.3g} GB need "
                f"{each * plan.world_size / 1e9:.3g} GB, this machine has "
                f"{self.memory_bytes / 1e9:.3g} GB; use fewer ranks or a smaller KV cache"
            )

    def _bytes_of_rank(self, plan: ParallelPlan, model: ModelConfig) -> int:
        """Bytes of the machine that one rank takes: process, weights and KV."""
        kv_bytes = self.kv_bytes or 0
        if self.num_kv_blocks is not None:
            per_token = model.kv_bytes_per_token(plan, self.dtype)
            kv_bytes = per_token * self.block_size * self.num_kv_blocks
        return RANK_PROCESS_BYTES + model.weight_bytes_per_rank(plan, self.dtype) + kv_bytes


def check_ranks(
    plan: ParallelPlan, limit: int = MOST_RANKS, *, way_out: str = "choose a smaller plan"
) -> None:
    """Raises PlanError for a plan of more ranks than ``limit``, by default than any host has."""
    if plan.world_size > limit:
        raise PlanError(
            f"plan {plan} needs {plan.world_size} devices, this engine has {limit}; {way_out}"
        )


def kv_bytes_of_rank(
    plan: ParallelPlan,
    model: ModelConfig,
    dtype: DType,
    *,
    block_size: int,
    usable_bytes: int | None,
    kv_bytes: int,
    step_bytes: int = 0,
) -> int:
    """KV bytes of each rank: what weights and ``step_bytes`` leave of ``usable_bytes``, else
    ``kv_bytes``. ``step_bytes`` are activations, counts of penalties and CUDA graphs.

    Raises:
        PlanError: one block of ``block_size`` tokens does not fit, with the numbers.
    """
    block_bytes = model.kv_bytes_per_token(plan, dtype) * block_size
    beside = "the KV cache size"
    if usable_bytes is not None:
        weight_bytes = model.weight_bytes_per_rank(plan, dtype)
        kv_bytes = usable_bytes - weight_bytes - step_bytes
        beside = (
            f"{usable_bytes} usable bytes of the device minus {weight_bytes} bytes of weights and "
            f"{step_bytes} of activations, counts of penalties and CUDA graphs"
        )
    if kv_bytes < block_bytes:
        raise PlanError(
            f"plan {plan}: one KV block needs {block_bytes} bytes per rank, "
            f"but {beside} leaves {max(kv_bytes, 0)}; use more ranks or a smaller dtype"
        )
    return kv_bytes
