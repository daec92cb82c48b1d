"""Kernels that begin while the one before them ends: programmatic dependent launch, from Hopper on.

A layer of a decode step is ten launches of a few microseconds, and the device would drain and fill
again between them. With this a kernel's programs take their places early and wait there. Every
program waits before it reads what an earlier kernel wrote, or overwrites what an earlier kernel
reads. Programs without work wait too, so that the end of a kernel implies the end of all before it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

LEAST_CAPABILITY = (9, 0)
# Off unless asked for: compiled for Hopper, but not measured on one yet.
ON_VARIABLE = "GEARSHIFT_DEPENDENT_LAUNCH"


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def wait_for_previous(is_overlapped: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until all that earlier kernels wrote is there, and let the next kernel take its place.

    ``is_overlapped`` is a constant of the kernel, as :func:`overlapped` gives it.
    """
    if is_overlapped:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


def overlapped(x: Tensor) -> dict[str, Any]:
    """What a launch on the device of ``x`` is given beside its arguments."""
    if not x.is_cuda or not _can_overlap(x.device):
        return {"is_overlapped": False}
    return {"is_overlapped": True, "launch_pdl": True}


@lru_cache
def _can_overlap(device: torch.device) -> bool:
    is_on = os.environ.get(ON_VARIABLE, "") not in ("", "0")
    return is_on and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
