"""Triton kernels compiled for a GPU that is not here: what the interpreter lets pass, this finds.

Inside :func:`compiling` a launch compiles its kernel, down to machine code, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
WARP_SIZE = 32


@contextmanager
def compiling(*, capability: int) -> Iterator[dict[str, list[CompiledKernel]]]:
    """Launches fill the dictionary, by kernel; ``capability`` is, for example, 90 for an H200."""
    target = GPUTarget("cuda", capability, WARP_SIZE)
    found: dict[str, list[CompiledKernel]] = {}

    def compile_instead(kernel: JITFunction, *args: Any, **named: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False)) | named
        options = {name: values.pop(name) for name in OPTIONS if name in values}
        compiled = triton.compile(_source(kernel, values), target=target, options=options)
        found.setdefault(kernel.__name__, []).append(compiled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_instead)
        yield found


def _source(kernel: JITFunction, values: dict[str, Any]) -> ASTSource:
    """The kernel with the types, constants and even addresses that a launch would find."""
    types, constants, even = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            types[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        is_tensor = isinstance(value, torch.Tensor)
        types[parameter.name] = POINTERS[value.dtype] if is_tensor else "i32"
        number = value.data_ptr() if is_tensor else value
        if number % 16 == 0 and not parameter.do_not_specialize:
            even[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, types, constants, even)
