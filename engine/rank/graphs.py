"""The forward pass of one rank as CUDA graphs: one launch instead of hundreds.

A graph repeats the launches it has seen, with the same addresses and grids. So it is captured for a
padded number of tokens. It reads its step from tables and ids that are copied over those of the
step before, and leaves its answer where it left the last one. One graph for each size, each mode of
the plan, and steps with and without longer runs of new tokens: a step never leaves the graphs
because its mode or its mix has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.kernels.gpu.layer import TritonAttention, TritonKernels
from engine.kernels.gpu.tables import DeviceTables, StepShape, empty_tables
from engine.kernels.layer import LayerKernels
from engine.models.batch import StepBatch
from engine.models.llama import LlamaStage
from engine.parallel.mesh import TimedCommunicator
from engine.spec.errors import EngineError
from engine.spec.graphs import MOST_TABLE_BLOCKS, kinds
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """A graph and where it leaves its answer, ``[rows of the mode, d]``."""

    graph: torch.cuda.CUDAGraph
    answer: Tensor


class StageGraphs:
    """Graphs of one stage for steps of up to ``kernels.graph_rows[-1]`` tokens.

    Owned by the thread that computes. ``first_rows`` says what a graph begins with: ids of tokens
    on the first stage, else rows of the residual stream from the stage before.
    """

    def __init__(
        self,
        *,
        stage: LlamaStage,
        kernels: TritonKernels,
        plan: ParallelPlan,
        is_first_stage: bool,
        hidden_size: int,
        max_blocks: int,
        timers: Sequence[TimedCommunicator],
    ) -> None:
        self._stage = stage
        self._kernels = kernels
        self._plan = plan
        self._timers = timers
        self._is_first_stage = is_first_stage
        cache, most = kernels.shape.cache, kernels.graph_rows[-1]
        self._ids = torch.zeros(most, dtype=torch.int64, device=cache.device)
        self._rows = torch.zeros(most, hidden_size, dtype=cache.dtype, device=cache.device)
        # One array for the tables of all graphs: only one of them runs at a time.
        largest = kernels.graph_shape(most, has_prefill=True)
        num_blocks = min(most * max_blocks, MOST_TABLE_BLOCKS)
        self._tables = empty_tables(largest, num_blocks, cache.device).array
        self._captured: dict[tuple[Mode, StepShape], _Captured] = {}

    def capture(self) -> None:
        """Capture all graphs; every rank of the replica does it at the same time."""
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode():
            # The largest comes first, so that the others fit into the memory that it leaves.
            for num_rows in reversed(self._kernels.graph_rows):
                for has_prefill in kinds(num_rows):
                    shape = self._kernels.graph_shape(num_rows, has_prefill=has_prefill)
                    for mode in self._plan.modes:
                        self._captured[mode, shape] = self._capture(mode, shape, pool)

    def find(self, batch: StepBatch) -> Callable[[Tensor], Tensor] | None:
        """What runs the layers of ``batch`` from its ids or first rows; None if no graph does."""
        attention = batch.attention
        assert isinstance(attention, TritonAttention), "graphs are captured of Triton kernels"
        tables = attention.tables
        captured = self._captured.get((batch.mode, tables.shape))
        if captured is None or len(tables.array) > len(self._tables):
            return None

        def run(first: Tensor) -> Tensor:
            self._tables[: len(tables.array)].copy_(tables.array)
            self._first[: len(first)].copy_(first)
            captured.graph.replay()
            return captured.answer

        return run

    @property
    def num_captured(self) -> int:
        return len(self._captured)

    @property
    def _first(self) -> Tensor:
        return self._ids if self._is_first_stage else self._rows

    def _capture(self, mode: Mode, shape: StepShape, pool: tuple[int, int]) -> _Captured:
        num_rows = shape.num_rows // self._plan.rung(mode).sp
        self._tables.fill_(-1)
        tables = DeviceTables.over(self._tables, shape)
        tables.positions.zero_()
        attention = self._kernels.over(tables)

        def run() -> Tensor:
            # The layers overwrite their rows, and those of the stage before are copied only once.
            first = self._first[:num_rows]
            x = self._stage.embed(first, mode) if self._is_first_stage else first.clone()
            return self._stage.forward(x, mode, attention)

        for timer in self._timers:
            timer.is_paused = True
        try:
            # Kernels are compiled and communicators are connected outside the capture.
            run()
            torch.cuda.current_stream().synchronize()
            graph = torch.cuda.CUDAGraph()
            # torch's own name for the type of a pool is private.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
                answer = run()
        finally:
            for timer in self._timers:
                timer.is_paused = False
        return _Captured(graph=graph, answer=answer)


def capture_graphs(*, kernels: LayerKernels, **given: Any) -> StageGraphs | None:
    """The captured graphs of a :class:`StageGraphs` made with ``given``; None if ``kernels`` have
    none.

    Raises:
        EngineError: no memory is left for what graphs keep.
    """
    if not isinstance(kernels, TritonKernels) or not kernels.graph_rows:
        return None
    try:
        graphs = StageGraphs(kernels=kernels, **given)
        graphs.capture()
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"no room on {kernels.shape.cache.device} for CUDA graphs of steps of up to "
            f"{kernels.graph_rows[-1]} tokens; use fewer (max_graph_tokens) or a smaller KV cache"
        ) from error
    return graphs
