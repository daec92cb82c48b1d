"""One rank's half of a step: load a shard, run step plans on it, answer from the last stage."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from engine.batch import BatchBuilder, StepBatch
from engine.config import DType, ModelConfig
from engine.kernels.attention_plan import CacheShape
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.models.llama import LlamaStage
from engine.models.rope import RopeTable
from engine.models.weights import StageWeights, load_stage
from engine.parallel.mesh import RankGroups, TimedCommunicator
from engine.parallel.pipeline import recv_stage, send_stage
from engine.plan import ParallelPlan, check_plan
from engine.sampling import SamplingRows, sample
from engine.steps import StepPlan, StepResult

TORCH_DTYPES = {
    DType.FLOAT64: torch.float64,
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


class ModelRunner:
    """The model of one rank. Owned and called by one thread.

    ``plan`` is a replica's (dp=1) and ``rank`` lies in it. Loads only this rank's shard.

    Raises:
        CheckpointError: the model folder is at fault.
        PlanError: this model cannot run under ``plan``.
    """

    def __init__(
        self,
        *,
        model_dir: Path,
        plan: ParallelPlan,
        rank: int,
        dtype: DType,
        device: str,
        block_size: int,
        num_kv_blocks: int,
        groups: RankGroups,
    ) -> None:
        self._model = ModelConfig.from_dir(model_dir)
        check_plan(plan, self._model)
        self._device = torch.device(device)
        self._dtype = TORCH_DTYPES[dtype]
        self._groups, self._timers = _timed(groups)
        self._weights = load_stage(
            model_dir=Path(model_dir),
            model=self._model,
            plan=plan,
            rank=rank,
            dtype=self._dtype,
            device=self._device,
            groups=self._groups,
        )
        shape = CacheShape(
            block_size=block_size,
            num_kv_heads=self._weights.layout.num_kv,
            head_dim=self._model.head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        self._caches = _allocate(self._weights, shape, num_kv_blocks)
        self._stage = LlamaStage(
            model=self._model,
            plan=plan,
            weights=self._weights,
            caches=self._caches,
            groups=self._groups,
            device=self._device,
        )
        num_positions = min(self._model.max_positions, num_kv_blocks * block_size)
        self._batches = BatchBuilder(
            shape=shape,
            rope=RopeTable(
                self._model, num_positions=num_positions, dtype=self._dtype, device=self._device
            ),
            groups=self._groups,
        )

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of weights on this rank, each storage once."""
        return self._weights.num_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of this rank's KV cache."""
        return sum(cache.num_bytes for cache in self._caches)

    def execute(self, step: StepPlan) -> StepResult | None:
        """Run one step; every rank of the replica runs the same one.

        Returns:
            The result on the last stage's first rank (s=0, t=0), None elsewhere.

        Raises:
            RankError: a peer did not come to a collective.
        """
        with torch.inference_mode():
            start_s, waited_s = self._now(), self._waited()
            batch = self._batches.build(step)
            ready_s = self._now()
            x = self._stage.forward(self._first_rows(batch), batch)
            if self._weights.head is None:
                send_stage(x, batch.mode, self._groups)
                return None
            logits = self._stage.logits(x, batch) if batch.sampled.count else None
            if self._groups.shift.rank != 0:
                return None
            done_s = self._now()
            communication_s = self._waited() - waited_s
            result = _sampled(step, logits)
            result.input_s = ready_s - start_s
            result.forward_s = max(0.0, done_s - ready_s - communication_s)
            result.communication_s = communication_s
            result.sample_s = self._now() - done_s
            return result

    def _first_rows(self, batch: StepBatch) -> Tensor:
        if self._groups.stage == 0:
            return self._stage.embed(batch)
        return recv_stage(
            num_rows=batch.num_rows,
            hidden_size=self._model.hidden_size,
            mode=batch.mode,
            groups=self._groups,
            dtype=self._dtype,
            device=self._device,
        )

    def _now(self) -> float:
        """Seconds; on CUDA, of the work queued so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _waited(self) -> float:
        return sum(timer.seconds for timer in self._timers)


def _timed(groups: RankGroups) -> tuple[RankGroups, list[TimedCommunicator]]:
    """The same groups, those of more than one rank timed."""
    timers = {
        name: TimedCommunicator(getattr(groups, name))
        for name in ("tp", "sp", "shift", "pipeline")
        if getattr(groups, name).size > 1
    }
    members = {
        name: timers.get(name, getattr(groups, name)) for name in ("tp", "sp", "shift", "pipeline")
    }
    return RankGroups(**members), list(timers.values())


def _allocate(
    weights: StageWeights, shape: CacheShape, num_kv_blocks: int
) -> tuple[LayerCache, ...]:
    return tuple(
        allocate_cache(
            num_blocks=num_kv_blocks,
            block_size=shape.block_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=shape.device,
        )
        for _ in weights.layers
    )


def _sampled(step: StepPlan, logits: Tensor | None) -> StepResult:
    """The result's ids and, when asked for, logits; times are still to be filled in."""
    if logits is None:
        return StepResult(step_id=step.step_id)
    ids = sample(logits, SamplingRows.of_step(step))
    return StepResult(
        step_id=step.step_id,
        token_ids=ids.int().cpu().numpy().tobytes(),
        logits=logits.double().cpu().numpy().tobytes() if step.return_logits else None,
    )
