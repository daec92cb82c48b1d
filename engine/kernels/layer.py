"""What a decoder layer does besides its products: protocols that three versions follow.

``layer_torch`` is the reference, and what machines without a compiler run; ``layer_native`` calls
the library compiled for a CPU; ``gpu`` holds the Triton kernels of CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.kv_cache import LayerCache


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Heads of one rank: its cache, ``num_q`` query heads, and the ``eps`` of the model's norms."""

    cache: CacheShape
    num_q: int
    rms_eps: float


class StepAttention(Protocol):
    """One step's attention, the same for all layers but for weights and cache."""

    def attend(self, qkv: Tensor, *, qk_norm: Tensor | None, cache: LayerCache) -> Tensor:
        """Norm (where the model has it) and rotate queries and keys, write the cache, attend.

        Args:
            qkv: ``[n padded, (num_q + 2 num_kv) * hd]``, queries, keys and values of each token;
                may be overwritten.
            qk_norm: ``[num_q + num_kv, hd]``, each head's norm weight.
            cache: this layer's; the step's slots are overwritten.

        Returns:
            ``[n padded, num_q * hd]``; rows behind the step's tokens are zeros.
        """
        ...


class LayerKernels(Protocol):
    """The operations of one rank's layers."""

    @property
    def name(self) -> str:
        """What runs, for people."""
        ...

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        """Add ``delta`` to ``x[n, d]`` in place, and return the RMSNorm of the sum, ``[n, d]``."""
        ...

    def silu_mul(self, gate_up: Tensor, num_blocks: int) -> Tensor:
        """See :func:`engine.kernels.silu_mul.silu_mul`."""
        ...

    def padded_rows(self, num_tokens: int) -> int:
        """How many rows a step of ``num_tokens`` has, the padding after its tokens among them."""
        ...

    def step(self, tables: StepTables, num_rows: int) -> StepAttention:
        """Attention of the step that ``tables`` tell of, padded to ``num_rows`` rows."""
        ...
