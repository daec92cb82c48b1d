"""What one rank of a replica holds; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """One rank's share of a replica: what it loads, where to, and how much it may be asked to hold.

    ``plan`` is the replica's (dp=1) and ``rank`` lies in it. The KV cache has ``num_kv_blocks``
    blocks of ``block_size`` tokens, of which each of the ``num_slots`` sequences has
    ``max_blocks_per_seq`` at most. ``context_tokens`` is the context that was asked for (None: the
    model's), whatever there is room for: how positions turn heads may depend on it, and must not on
    the plan. ``quantisation``: see ``EngineConfig``. On CUDA steps of up to
    ``max_graph_tokens`` run as graphs. It is sent to ranks as it is, which is why its folder is a
    string.
    """

    model_dir: str
    plan: ParallelPlan
    rank: int
    dtype: DType
    device: str
    block_size: int
    num_kv_blocks: int
    num_slots: int
    max_blocks_per_seq: int
    context_tokens: int | None = None
    has_parallel_sampling: bool = True
    max_graph_tokens: int = 0
    quantisation: WeightFormat | None = None

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        model: ModelConfig,
        plan: ParallelPlan,
        *,
        rank: int,
        device: str,
        has_graphs: bool,
    ) -> RankShare:
        """The share of ``rank`` in a replica of ``plan``.

        Raises:
            PlanError: weights and one KV block do not fit the device.
        """
        blocks = num_kv_blocks(config, model, plan)
        max_len = config.max_model_len or model.max_positions
        return cls(
            model_dir=str(config.model_dir),
            plan=plan,
            rank=rank,
            dtype=config.dtype,
            device=device,
            block_size=config.block_size,
            num_kv_blocks=blocks,
            num_slots=config.start_envelope.max_num_seqs,
            max_blocks_per_seq=min(blocks, -(-max_len // config.block_size)),
            context_tokens=config.max_model_len,
            has_parallel_sampling=config.parallel_sampling,
            max_graph_tokens=config.max_graph_tokens if has_graphs else 0,
            quantisation=config.quantisation,
        )
