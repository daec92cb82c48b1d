"""All layers of a decode step in one call of the compiled library; see ``parallel/few_stage.h``.

At one row, a fifth of a step went to Python and torch between 120 calls, and to waking and joining
threads for each. Where a group sums, the library calls the compiled collective itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import LayerKernels, StepAttention
from engine.kernels.layer_native import NativeAttention, NativeKernels, check
from engine.models.weights import LayerWeights
from engine.parallel.communicator import Communicator
from engine.parallel.few_rows import KINDS, PieceFields, most_rows
from engine.parallel.few_rows_library import find_few_rows
from engine.parallel.mesh import RankGroups, TimedCommunicator
from engine.parallel.rejoin import RejoinableCommunicator
from engine.parallel.shm_native import DTYPE_CODES, NativeShmCommunicator
from engine.spec.modes import Mode

NO_MEMORY = -1
POINTER, I64 = ctypes.c_void_p, ctypes.c_int64


class LayerFields(ctypes.Structure):
    """``LayerFields`` of few_stage.h."""

    _fields_ = tuple(
        (name, POINTER)
        for name in (
            *("input_norm", "post_norm", "qk_norm", "keys", "values"),
            *("qkv", "o", "gate_up", "down"),
        )
    )


class StageFields(ctypes.Structure):
    """``Stage`` of few_stage.h."""

    _fields_ = (
        ("shape", POINTER),
        ("layers", POINTER),
        *(
            (name, I64)
            for name in (
                *("num_layers", "width", "num_qkv", "num_o", "num_gate_up", "num_down"),
                "ffn_blocks",
            )
        ),
        ("reduce", POINTER),
        ("group", POINTER),
        ("reduce_dtype", I64),
        ("is_int8", I64),
        ("o_bias", POINTER),
        ("down_bias", POINTER),
    )


class NativeLayers:
    """The layers of one rank in one mode, as the library is told of them."""

    def __init__(
        self,
        kernels: NativeKernels,
        pieces: Sequence[_LayerPieces],
        weights: Sequence[LayerWeights],
        caches: Sequence[LayerCache],
        *,
        ffn_blocks: int,
        is_int8: bool,
        group: Communicator,
    ) -> None:
        library = find_few_rows()
        assert library is not None, "pieces were found, which it made"
        dtype = kernels.shape.cache.dtype
        self._run = library.gs_run_layers
        self._is_narrow = KINDS[dtype].code
        self._most_rows = most_rows(dtype, is_int8=is_int8)
        self._group = group
        self._kept = (pieces, weights, caches, kernels)  # whose memory the fields tell of
        layers = (LayerFields * len(weights))()
        for fields, of_layer, layer, cache in zip(layers, pieces, weights, caches, strict=True):
            of_layer.fill_in(fields)
            fields.input_norm = layer.input_norm.data_ptr()
            fields.post_norm = layer.post_norm.data_ptr()
            fields.qk_norm = _address(layer.qk_norm)
            fields.keys, fields.values = cache.keys.data_ptr(), cache.values.data_ptr()
        self._layers = layers
        self._o_bias = _addresses([layer.o.late_bias(group) for layer in weights])
        self._down_bias = _addresses([layer.down.late_bias(group) for layer in weights])
        self._fields = StageFields(
            shape=kernels.shape_address,
            layers=ctypes.addressof(layers),
            num_layers=len(layers),
            width=weights[0].input_norm.shape[0],
            num_qkv=len(pieces[0].qkv),
            num_o=len(pieces[0].o),
            num_gate_up=len(pieces[0].gate_up),
            num_down=len(pieces[0].down),
            ffn_blocks=ffn_blocks,
            reduce_dtype=DTYPE_CODES[dtype],
            is_int8=is_int8,
            o_bias=None if self._o_bias is None else ctypes.addressof(self._o_bias),
            down_bias=None if self._down_bias is None else ctypes.addressof(self._down_bias),
        )

    def try_run(self, x: Tensor, attention: StepAttention) -> bool:
        """The layers over ``x[rows, d]``, which is overwritten; fills the KV cache. Does nothing
        and returns False unless there are few rows, each the one new token of a sequence.
        """
        if not isinstance(attention, NativeAttention) or not x.is_contiguous():
            return False
        if attention.num_new_tokens != x.shape[0] or not 0 < x.shape[0] <= self._most_rows:
            return False
        shared = _shared(self._group)
        if self._group.size > 1:
            if shared is None:
                return False
            # Asked anew each time: after a peer was replaced, it is another group.
            self._fields.reduce, self._fields.group = shared.sum_address, shared.handle
        waited_ns = I64(0)
        status = self._run(
            self._is_narrow,
            ctypes.addressof(self._fields),
            attention.address,
            x.data_ptr(),
            x.shape[0],
            ctypes.addressof(waited_ns),
        )
        if isinstance(self._group, TimedCommunicator):
            self._group.add(waited_ns.value * 1e-9)
        if status and status != NO_MEMORY and shared is not None:
            shared.fail(status)
        check(status)
        return True


class _LayerPieces:
    """One layer's packed pieces in a mode."""

    def __init__(
        self,
        qkv: Sequence[PieceFields],
        o: Sequence[PieceFields],
        gate_up: Sequence[PieceFields],
        down: Sequence[PieceFields],
    ) -> None:
        self.qkv, self.o, self.gate_up, self.down = (
            (PieceFields * len(pieces))(*pieces) for pieces in (qkv, o, gate_up, down)
        )
        # Whether weights are int8, of each piece.
        self.are_int8 = {
            piece.scales is not None for pieces in (qkv, o, gate_up, down) for piece in pieces
        }

    def fill_in(self, fields: LayerFields) -> None:
        fields.qkv, fields.o = ctypes.addressof(self.qkv), ctypes.addressof(self.o)
        fields.gate_up, fields.down = ctypes.addressof(self.gate_up), ctypes.addressof(self.down)


def find_native_layers(
    kernels: LayerKernels,
    weights: Sequence[LayerWeights],
    caches: Sequence[LayerCache],
    *,
    mode: Mode,
    ffn_blocks: int,
    groups: RankGroups,
) -> NativeLayers | None:
    """The layers in one call; None where weights are not packed for compiled products, some in int8
    and others not, tokens are cut over ranks, or sums do not go over shared memory by the compiled
    library.
    """
    group = groups.tensor(mode)
    if not isinstance(kernels, NativeKernels) or groups.sequence(mode).size > 1 or not weights:
        return None
    if group.size > 1 and _shared(group) is None:
        return None
    pieces = [_pieces(layer, mode, group) for layer in weights]
    found = [of_layer for of_layer in pieces if of_layer is not None]
    are_int8 = {is_int8 for of_layer in found for is_int8 in of_layer.are_int8}
    if len(found) < len(pieces) or len(are_int8) > 1:
        return None
    is_int8 = are_int8.pop()
    if not most_rows(kernels.shape.cache.dtype, is_int8=is_int8):
        return None
    return NativeLayers(
        kernels,
        found,
        weights,
        caches,
        ffn_blocks=ffn_blocks,
        is_int8=is_int8,
        group=group,
    )


def _pieces(layer: LayerWeights, mode: Mode, group: Communicator) -> _LayerPieces | None:
    qkv, gate_up = layer.qkv.find_pieces(mode), layer.gate_up.find_pieces(mode)
    o, down = layer.o.find_pieces(mode, group), layer.down.find_pieces(mode, group)
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    return _LayerPieces(qkv, o, gate_up, down)


def _shared(group: Communicator) -> NativeShmCommunicator | None:
    """The end in shared memory, behind what times and exchanges it; None where it is another."""
    while isinstance(group, TimedCommunicator | RejoinableCommunicator):
        group = group.inner
    return group if isinstance(group, NativeShmCommunicator) else None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p] | None:
    if all(tensor is None for tensor in tensors):
        return None
    return (POINTER * len(tensors))(*(_address(tensor) for tensor in tensors))
