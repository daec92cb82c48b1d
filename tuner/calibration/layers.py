"""Times of whole decoder layers, composed of measured calls and of predictions of the same calls.

A layer is its four products, its attention and two all-reduces, as one rank of a tensor-parallel
group runs them. A layer is taken only if all its calls were measured: Llama-shaped, with sizes of
the measured grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuner.calibration.links import Series
from tuner.calibration.systems import Measured
from tuner.hardware.physics import ACTIVATION_BYTES, HEAD_DIM, FloatArray
from tuner.work.counts import CollectiveKind

DEGREES = (1, 2, 4, 8)
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A decoder layer. The first is Llama-3.1-8B's; others have FFN sizes of the measured grid."""

    hidden: int
    heads: int
    kv_heads: int
    ffn: int

    def weights(self, tp: int) -> tuple[tuple[int, int], ...]:
        """(n, k) of the four products on one of ``tp`` ranks."""
        q_width = self.heads * HEAD_DIM // tp
        kv_width = self.kv_heads * HEAD_DIM // tp
        return (
            (q_width + 2 * kv_width, self.hidden),
            (self.hidden, q_width),
            (2 * self.ffn // tp, self.hidden),
            (self.hidden, self.ffn // tp),
        )

    def head_shape(self, tp: int) -> tuple[int, int]:
        return self.heads // tp, self.kv_heads // tp


LAYERS = (
    LayerShape(hidden=4096, heads=32, kv_heads=8, ffn=14_336),
    LayerShape(hidden=4096, heads=32, kv_heads=8, ffn=8192),
    LayerShape(hidden=4096, heads=32, kv_heads=8, ffn=16_384),
    LayerShape(hidden=4096, heads=48, kv_heads=8, ffn=12_288),
    LayerShape(hidden=8192, heads=64, kv_heads=8, ffn=32_768),
    LayerShape(hidden=8192, heads=64, kv_heads=8, ffn=24_576),
    LayerShape(hidden=8192, heads=48, kv_heads=8, ffn=32_768),
    LayerShape(hidden=8192, heads=48, kv_heads=8, ffn=8192),
    LayerShape(hidden=16_384, heads=64, kv_heads=8, ffn=8192),
)


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One layer step: indices of its calls in the measured products, attentions and all-reduces
    (-1 where one rank needs none)."""

    shape: LayerShape
    tp: int
    kind: str
    seqs: int
    length: int
    gemms: tuple[int, ...]
    attention: int
    all_reduce: int


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Every measured or predicted call of one device, in the order of the measurements."""

    gemm_s: FloatArray
    prefill_s: FloatArray
    decode_s: FloatArray
    all_reduce_s: FloatArray

    def layer_s(self, call: LayerCall) -> float:
        """Seconds of one layer."""
        attention = self.prefill_s if call.kind == PREFILL else self.decode_s
        reduce_s = 2 * self.all_reduce_s[call.all_reduce] if call.all_reduce >= 0 else 0.0
        return float(self.gemm_s[list(call.gemms)].sum() + attention[call.attention] + reduce_s)


Key = tuple[int, ...]


def find_layer_calls(
    gemm: Measured, prefill: Measured, decode: Measured, all_reduces: list[Series]
) -> list[LayerCall]:
    """Every layer of :data:`LAYERS`, degree, batch and length whose calls were all measured."""
    products = _index(gemm.columns.values)
    reduces = _index(all_reduce_keys(all_reduces))
    found: list[LayerCall] = []
    for kind, measured in ((PREFILL, prefill), (DECODE, decode)):
        attentions = _index(measured.columns.values)
        for seqs, length, heads, kv_heads in list(attentions):
            rows = seqs * length if kind == PREFILL else seqs
            for shape, tp in _layers_of(heads, kv_heads):
                gemms = [products.get((rows, n, k), -1) for n, k in shape.weights(tp)]
                reduce = reduces.get((tp, rows * shape.hidden * ACTIVATION_BYTES), -1)
                if min(gemms) < 0 or (tp > 1 and reduce < 0):
                    continue
                found.append(
                    LayerCall(
                        shape=shape,
                        tp=tp,
                        kind=kind,
                        seqs=seqs,
                        length=length,
                        gemms=tuple(gemms),
                        attention=attentions[seqs, length, heads, kv_heads],
                        all_reduce=reduce,
                    )
                )
    return found


def all_reduce_keys(series: list[Series]) -> FloatArray:
    """f8[calls, 2]: ranks and bytes of every call of the series, one after the other."""
    return np.concatenate(
        [np.column_stack([np.full(len(s.seconds), s.ranks), s.num_bytes]) for s in series]
    )


def _layers_of(heads: int, kv_heads: int) -> Iterator[tuple[LayerShape, int]]:
    for shape in LAYERS:
        for tp in DEGREES:
            if shape.head_shape(tp) == (heads, kv_heads):
                yield shape, tp


def _index(values: npt.NDArray[np.float64]) -> dict[Key, int]:
    return {tuple(map(int, row)): i for i, row in enumerate(values)}


def is_all_reduce(series: Series) -> bool:
    """The one that served engines use inside captured graphs."""
    return series.kind is CollectiveKind.ALL_REDUCE and series.via == "graph"
