"""Which version of a layer's operations a device runs."""

from __future__ import annotations

from torch import Tensor

from engine.kernels.cpu_library import find_cpu_library
from engine.kernels.layer import HeadShape, LayerKernels
from engine.kernels.layer_native import NativeKernels
from engine.kernels.layer_torch import TorchKernels


def layer_kernels(shape: HeadShape, rope: Tensor) -> LayerKernels:
    """The compiled ones on a CPU where a compiler is or was, else torch's.

    ``rope`` is the table of angles, ``[positions, hd]``, cosines beside sines.
    """
    library = find_cpu_library() if shape.cache.device.type == "cpu" else None
    if library is None:
        return TorchKernels(shape=shape, rope=rope)
    return NativeKernels(library, shape, rope)
