"""The decoder of the Llama family (Llama 3.x, Qwen 2.5, Qwen 3), one pipeline stage of it.

All modes run the same code: they differ in which view of a weight a product reads, which group
sums, and over which group attention's two all-to-alls go (in shift mode over none).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import LayerKernels, StepAttention
from engine.models.batch import PickedRows
from engine.models.native_layers import find_native_layers
from engine.models.weights import LayerWeights, StageWeights
from engine.parallel.mesh import RankGroups
from engine.parallel.sequence import HeadExchange
from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan

# The C library's allocator keeps no larger piece of memory. It asks the system anew each time, and
# fresh pages for the FFN's wide middle took 2 to 5 % of a prompt of 2,048 tokens in float32.
KEPT_BYTES = 32 * 2**20
# Products of more rows are no faster.
ENOUGH_ROWS = 512


class LlamaStage:
    """One rank's part of the model. Rows of ``x`` are my slice of tokens in the step's mode (all of
    them in shift); ``x`` is the same on every rank of the mode's tensor group.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        plan: ParallelPlan,
        weights: StageWeights,
        caches: tuple[LayerCache, ...],
        groups: RankGroups,
        kernels: LayerKernels,
        device: torch.device,
    ) -> None:
        self._kernels = kernels
        self._weights = weights
        self._caches = caches
        self._ffn_blocks = {mode: plan.rung(mode).sp for mode in plan.modes}
        self._ffn_widths = {mode: 2 * model.ffn_size // plan.rung(mode).tp for mode in plan.modes}
        self._exchanges = {
            mode: HeadExchange(
                view,
                block=weights.layout.block,
                head_dim=model.head_dim,
                group=groups.sequence(mode),
                device=device,
            )
            for mode, view in weights.layout.views.items()
        }

        self._natives = {
            mode: find_native_layers(
                kernels,
                weights.layers,
                caches,
                mode=mode,
                ffn_blocks=self._ffn_blocks[mode],
                groups=groups,
            )
            for mode in weights.layout.views
        }

    @property
    def has_native_layers(self) -> bool:
        """Whether a decode step's layers are one call of the compiled library, in some mode."""
        return any(native is not None for native in self._natives.values())

    def embed(self, token_ids: Tensor, mode: Mode) -> Tensor:
        """Rows of the embedding ``[rows, d]``; first stage only."""
        assert self._weights.embedding is not None, "only the first stage embeds"
        return self._weights.embedding(token_ids, mode)

    def forward(
        self,
        x: Tensor,
        mode: Mode,
        attention: StepAttention,
        finished: PickedRows | None = None,
    ) -> Tensor:
        """The stage's layers over ``x[rows, d]``, which is overwritten; fills the KV cache.

        Returns:
            All rows, or this rank's part of the ``finished`` ones. Nobody reads more of the last
            layer's others than their keys and values, so it ends with attention for them: of a
            prompt, that is eight tenths of a layer less.
        """
        native = self._natives[mode]
        if native is not None and native.try_run(x, attention):
            return x if finished is None else finished.part(x)
        norm, delta = self._kernels.add_norm, None
        for layer, cache in zip(self._weights.layers, self._caches, strict=True):
            picked = finished if layer is self._weights.layers[-1] else None
            normed = norm(x, delta, layer.input_norm)
            attended = self._attend(normed, layer, cache, mode, attention)
            if picked is not None:
                x, attended = picked.part(x), picked.part(attended)
                if not picked.count:
                    return x
            delta = layer.o(attended, mode)
            delta = self._feed(norm(x, delta, layer.post_norm), layer, mode)
        return x if delta is None else x.add_(delta)

    def collect(self, part: Tensor, picked: PickedRows) -> Tensor:
        """The ``picked`` rows, of which this rank has a ``part``, after the final norm, ``[R, d]``
        on every rank; last stage only.

        One tail for all modes: the rows reach every rank, then come the norm and, in
        :meth:`logit_shard`, this rank's share of the vocabulary out of sp*tp.
        """
        assert self._weights.final_norm is not None, "only the last stage has the final norm"
        rows = picked.collect(part)
        return self._kernels.add_norm(rows, None, self._weights.final_norm)

    def logit_shard(self, rows: Tensor) -> Tensor:
        """This rank's logits of collected ``rows[R, d]``, ``[R, padded vocabulary / (sp*tp)]``;
        last stage only.
        """
        assert self._weights.head is not None, "only the last stage has the head"
        return self._weights.head.shard(rows)

    def gather_logits(self, shard: Tensor) -> Tensor:
        """All ranks' :meth:`logit_shard` -> ``[R, vocab_size]`` on each of them."""
        assert self._weights.head is not None, "only the last stage has the head"
        return self._weights.head.gather(shard)

    def _attend(
        self,
        x: Tensor,
        layer: LayerWeights,
        cache: LayerCache,
        mode: Mode,
        attention: StepAttention,
    ) -> Tensor:
        exchange = self._exchanges[mode]
        qkv = exchange.to_heads(layer.qkv(x, mode))
        attended = attention.attend(qkv, qk_norm=layer.qk_norm, cache=cache)
        return exchange.to_tokens(attended)

    def _feed(self, x: Tensor, layer: LayerWeights, mode: Mode) -> Tensor:
        gated = [
            self._kernels.silu_mul(layer.gate_up(rows, mode), self._ffn_blocks[mode])
            for rows in self._parts(x, mode)
        ]
        return layer.down(gated[0] if len(gated) == 1 else torch.cat(gated), mode)

    def _parts(self, x: Tensor, mode: Mode) -> tuple[Tensor, ...]:
        """``x[rows, d]`` in as few parts as keep the FFN's middle small enough, on a CPU."""
        if x.device.type != "cpu":
            return (x,)
        num_bytes = len(x) * self._ffn_widths[mode] * x.element_size()
        return torch.chunk(x, max(1, min(-(-num_bytes // KEPT_BYTES), len(x) // ENOUGH_ROWS)))
