"""Which version of a layer's operations a device runs."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from engine.kernels.cpu_library import find_cpu_library
from engine.kernels.layer import HeadShape, LayerKernels
from engine.kernels.layer_native import NativeKernels
from engine.kernels.layer_torch import TorchKernels


def layer_kernels(
    shape: HeadShape, rope: Tensor, *, graph_rows: tuple[int, ...] = ()
) -> LayerKernels:
    """Triton's on CUDA, the compiled ones on a CPU where a compiler is or was, else torch's.

    Triton has none for float64. ``rope`` is the table of angles, ``[positions, hd]``, cosines
    beside sines. ``graph_rows`` are the sizes of steps that CUDA graphs are captured for, if
    Triton's are taken.
    """
    device = shape.cache.device.type
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        from engine.kernels.gpu.layer import TRITON_DTYPES, TritonKernels

        if shape.cache.dtype in TRITON_DTYPES:
            return TritonKernels(shape=shape, rope=rope, graph_rows=graph_rows)
    library = find_cpu_library() if device == "cpu" else None
    if library is None:
        return TorchKernels(shape=shape, rope=rope)
    return NativeKernels(library, shape, rope)
