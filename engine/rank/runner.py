"""One rank's half of a step: load a shard, prepare and run steps, answer from the last stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.kernels.attention_plan import CacheShape
from engine.kernels.choice import layer_kernels
from engine.kernels.huge_pages import collapse
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.layer import HeadShape, LayerKernels
from engine.kernels.transfer import InputStream
from engine.models.batch import BatchBuilder, StepBatch
from engine.models.llama import LlamaStage
from engine.models.rope import rope_table
from engine.models.weights import StageWeights, load_stage
from engine.parallel.mesh import RankGroups, TimeReading
from engine.parallel.pipeline import TokenFeedback, recv_stage, send_stage
from engine.parallel.quantised import as_held
from engine.rank.answers import HostAnswer, PendingAnswer
from engine.rank.step_times import StepTimes, mark
from engine.sampling.logprobs import RowLogprobs
from engine.sampling.sampler import SampledTokens, Sampler
from engine.sampling.scorer import score_rows
from engine.spec.feasible import check_plan
from engine.spec.graphs import graph_rows
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.share import RankShare
from engine.spec.steps import StepPlan
from engine.wire.rank_table import RankTable, StepRows

if TYPE_CHECKING:
    from engine.rank.graphs import StageGraphs

# What makes the weights of one rank: :func:`engine.models.weights.load_stage`, or one like it.
LoadStage = Callable[..., StageWeights]
TORCH_DTYPES = {
    DType.FLOAT64: torch.float64,
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedStep:
    """A step ready to run: preparing it took ``seconds``, and its inputs are on the device at
    ``arrival``."""

    step_id: int
    rows: StepRows
    batch: StepBatch
    return_logits: bool
    seconds: float
    arrival: torch.cuda.Event | None


class ModelRunner:
    """The model of one rank, and what it remembers of its slots between steps.

    Loads only its own ``share`` of the model, by ``load``. One thread prepares steps and one
    executes them (it may be the same). Steps that run as CUDA graphs need ``groups`` that can be
    captured.

    Raises:
        CheckpointError: the model folder is at fault.
        PlanError: this model cannot run under the plan.
    """

    def __init__(
        self, share: RankShare, *, groups: RankGroups, load: LoadStage = load_stage
    ) -> None:
        plan, model_dir = share.plan, Path(share.model_dir)
        self._device = torch.device(share.device)
        self._dtype = TORCH_DTYPES[share.dtype]
        self._model = as_held(
            ModelConfig.from_dir(model_dir), share.quantisation, self._dtype, self._device
        )
        check_plan(plan, self._model)
        self._groups, self._timers = groups.timed()
        self._weights = load(
            model_dir=model_dir,
            model=self._model,
            plan=plan,
            rank=share.rank,
            dtype=self._dtype,
            device=self._device,
            groups=self._groups,
        )
        if self._device.type == "cpu":
            collapse(self._weights.places.items())
        shape = CacheShape(
            block_size=share.block_size,
            num_kv_heads=self._weights.layout.num_kv,
            head_dim=self._model.head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        self.caches = _allocate(self._weights, shape, share.num_kv_blocks)
        self.kernels = self._make_kernels(share, shape)
        self._stage = LlamaStage(
            model=self._model,
            plan=plan,
            weights=self._weights,
            caches=self.caches,
            groups=self._groups,
            kernels=self.kernels,
            device=self._device,
        )
        self._batches = BatchBuilder(shape=shape, kernels=self.kernels, groups=self._groups)
        self._new_table = partial(
            RankTable, num_slots=share.num_slots, max_blocks=share.max_blocks_per_seq
        )
        self._table = self._new_table()
        self._last_tokens = torch.zeros(share.num_slots, dtype=torch.int64, device=self._device)
        self._feedback = TokenFeedback(self._last_tokens, groups)
        self._inputs = InputStream(self._device)
        self._sampler = self._make_sampler(share, groups)
        self._graphs: StageGraphs | None = None
        if self._device.type == "cuda":
            self._graphs = self._captured(plan, share.max_blocks_per_seq)

    def _make_kernels(self, share: RankShare, cache: CacheShape) -> LayerKernels:
        model, plan = self._model, share.plan
        rope = rope_table(
            model,
            num_positions=min(model.max_positions, share.num_kv_blocks * share.block_size),
            dtype=self._dtype,
            device=self._device,
            context=share.context_tokens,
        )
        return layer_kernels(
            HeadShape(cache=cache, num_q=self._weights.layout.num_q, rms_eps=model.rms_eps),
            rope,
            graph_rows=graph_rows(share.max_graph_tokens, plan.sp),
        )

    def _make_sampler(self, share: RankShare, groups: RankGroups) -> Sampler | None:
        """What samples, ready to; None on a stage without the head."""
        if self._weights.head is None:
            return None
        sampler = Sampler(
            groups=groups,
            vocab_size=self._model.vocab_size,
            num_slots=share.num_slots,
            is_parallel=share.has_parallel_sampling,
            device=self._device,
        )
        with self._inputs.computing():
            sampler.compile_kernels(self._dtype)
        return sampler

    def _captured(self, plan: ParallelPlan, max_blocks: int) -> StageGraphs | None:
        from engine.rank.graphs import capture_graphs  # it needs Triton

        with self._inputs.computing():
            return capture_graphs(
                stage=self._stage,
                kernels=self.kernels,
                plan=plan,
                is_first_stage=self._groups.stage == 0,
                hidden_size=self._model.hidden_size,
                max_blocks=max_blocks,
                timers=self._timers,
            )

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of weights on this rank, each storage once."""
        return self._weights.num_bytes

    @property
    def computes_by(self) -> str:
        """What computes a step, in words; on a CPU, also on how many threads."""
        if self._device.type != "cpu":
            graphs = "" if self._graphs is None else f", {self._graphs.num_captured} CUDA graphs"
            return f"{self._said_of_weights}layers: {self.kernels.name}{graphs}"
        threads = torch.get_num_threads()
        at_once = ", all in one call in decode" if self._stage.has_native_layers else ""
        return (
            f"{self._said_of_weights}{self._weights.products}; "
            f"layers: {self.kernels.name}{at_once}; "
            f"{threads} thread{'s' if threads > 1 else ''} per rank"
        )

    @property
    def _said_of_weights(self) -> str:
        """How quantised ones are held, for people."""
        said = self._model.quantisation
        if said is None:
            return ""
        return f"{said.format} weights, " + ("kept so; " if said.is_kept else "made plain: ")

    @property
    def kv_bytes(self) -> int:
        """Bytes of this rank's KV cache."""
        return sum(cache.num_bytes for cache in self.caches)

    def forget(self) -> None:
        """Begin anew with all slots empty, even in the middle of a step that failed.

        Weights and cache memory stay. No step may be between :meth:`prepare` and its end.
        """
        self._table = self._new_table()
        self._feedback.forget()
        self._take_waits()

    def prepare(self, step: StepPlan) -> PreparedStep:
        """Copy a step's inputs to the device. Call it for every step, in order, before ``execute``.

        It may run on another thread while :meth:`execute` runs earlier steps.
        """
        begun_s = time.perf_counter()
        with torch.inference_mode(), self._inputs.filling():
            rows = self._table.apply(step)
            batch = self._batches.build(rows, step.mode)
            arrival = self._inputs.arrival()
        return PreparedStep(
            step_id=step.step_id,
            rows=rows,
            batch=batch,
            return_logits=step.return_logits,
            seconds=time.perf_counter() - begun_s,
            arrival=arrival,
        )

    def execute(self, prepared: PreparedStep) -> PendingAnswer | None:
        """Run one step; every rank of the replica runs the same ones in the same order.

        On CUDA the step is only queued, and nothing waits for the device.

        Returns:
            The answer on the last stage's first rank (s=0, t=0), None elsewhere.

        Raises:
            RankError: a peer did not come to a collective.
        """
        with torch.inference_mode(), self._inputs.computing():
            answer = self._run(prepared)
            self._inputs.keep(prepared)
            return answer

    def _run(self, prepared: PreparedStep) -> PendingAnswer | None:
        batch, begun = prepared.batch, mark(self._device)
        self._await_inputs(prepared)
        ready = mark(self._device)
        x = self._forward(batch)
        if self._sampler is None:
            self._hand_on(x, prepared)
            return None
        shard = None
        if batch.sampled.count:
            part = x if batch.finished is batch.sampled else batch.sampled.part(x)
            shard = self._stage.logit_shard(self._stage.collect(part, batch.sampled))
        passed, waits = mark(self._device), self._take_waits()
        scores = self._score(x, prepared) if batch.scored.count else None
        answer = self._answer(self._sampler, prepared, shard, scores)
        self._take_waits()
        if answer is None:
            return None
        sampled = mark(self._device)
        times = StepTimes(
            prepare_s=prepared.seconds,
            begun=begun,
            ready=ready,
            passed=passed,
            sampled=sampled,
            waits=waits,
        )
        done = sampled if isinstance(sampled, torch.cuda.Event) else None
        return PendingAnswer(prepared.step_id, answer=answer, times=times, done=done)

    def _forward(self, batch: StepBatch) -> Tensor:
        """The stage's rows ``[rows, d]``, on the last one its part of those that are
        :attr:`StepBatch.finished`; in a graph if there is one for this step's shape.
        """
        finished = None if self._sampler is None else batch.finished
        first = batch.token_ids if self._groups.stage == 0 else self._received_rows(batch)
        run = None if self._graphs is None else self._graphs.find(batch)
        if run is not None:
            return run(first) if finished is None else finished.part(run(first))
        x = self._stage.embed(first, batch.mode) if self._groups.stage == 0 else first
        return self._stage.forward(x, batch.mode, batch.attention, finished)

    def _await_inputs(self, prepared: PreparedStep) -> None:
        """Make the step wait for its copies and earlier samples, and set sampling values."""
        self._inputs.await_arrival(prepared.arrival)
        if self._groups.stage == 0:
            if self._groups.num_stages > 1:
                rows = prepared.rows
                # Older steps are answered, so their ids were sent: taking them in keeps the queue
                # short.
                oldest = rows.number - self._groups.num_stages - 1
                self._feedback.receive_until(max(rows.newest_sample, oldest))
            prepared.batch.fill_placeholders(self._last_tokens)
        if self._sampler is not None:
            for start in prepared.rows.starts:
                self._sampler.start(start)

    def _hand_on(self, x: Tensor, prepared: PreparedStep) -> None:
        """Send ``x`` to the next stage; the first stage notes which sampled ids will come back."""
        send_stage(x, prepared.batch.mode, self._groups)
        if self._groups.stage == 0 and prepared.batch.sampled.count:
            self._feedback.expect(prepared.rows.number, prepared.batch.sample_slots)
        self._take_waits()

    def _answer(
        self,
        sampler: Sampler,
        prepared: PreparedStep,
        shard: Tensor | None,
        scores: RowLogprobs | None,
    ) -> HostAnswer | None:
        """Choose tokens and bring them to where they are embedded next; one rank answers."""
        logits, tokens = None, None
        if shard is not None:
            if prepared.return_logits:  # before the sampler, which edits what it is given
                logits = self._stage.gather_logits(shard).to(torch.float64, copy=True)
            tokens = self._sample(sampler, prepared, shard)
        if self._groups.shift.rank != 0:
            return None
        return HostAnswer.of(tokens, prompt_logprobs=scores, logits=logits)

    def _sample(self, sampler: Sampler, prepared: PreparedStep, shard: Tensor) -> SampledTokens:
        rows = prepared.rows
        tokens = sampler.sample(shard, slots=rows.sample_slots, positions=rows.positions)
        if self._groups.num_stages > 1:
            self._feedback.send(tokens.fed_ids)
        else:
            self._last_tokens.index_copy_(0, prepared.batch.sample_slots, tokens.fed_ids)
        return tokens

    def _score(self, x: Tensor, prepared: PreparedStep) -> RowLogprobs:
        """Log probabilities of the prompts' own tokens, of those requests that ask."""
        batch = prepared.batch
        return score_rows(
            self._stage.collect(batch.scored.part(x), batch.scored),
            batch.scored_ids,
            num_best=prepared.rows.num_prompt_logprobs,
            vocab_size=self._model.vocab_size,
            logit_shard=self._stage.logit_shard,
            group=self._groups.shift,
        )

    def _received_rows(self, batch: StepBatch) -> Tensor:
        return recv_stage(
            num_rows=batch.num_rows,
            hidden_size=self._model.hidden_size,
            mode=batch.mode,
            groups=self._groups,
            dtype=self._dtype,
            device=self._device,
        )

    def _take_waits(self) -> list[TimeReading]:
        return [timer.take() for timer in self._timers]


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
