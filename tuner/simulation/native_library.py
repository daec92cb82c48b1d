"""The compiled run: where its library comes from, and what it is told and tells."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from engine.kernels.native_build import (
    NO_COMPILER_VARIABLE,
    SHARED_FLAGS,
    Functions,
    NativeSource,
    find_library,
    open_library,
)

FOLDER = Path(__file__).with_name("native")
SOURCE = NativeSource(
    name="simulation",
    main=FOLDER / "simulate.cpp",
    parts=tuple(path for path in FOLDER.glob("*.*") if path.name != "simulate.cpp"),
    # A product and a sum rounded together would give other times than Python's.
    flags=(*SHARED_FLAGS, "-ffp-contract=off"),
)
_I64, _F64, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

# ``int on_progress(now_s, num_over, num_requests)``, ``int fill(mode, tokens, sampled)`` and
# ``int ask(shape, stage_s, host_s)``: 0 to go on.
ProgressCall = ctypes.CFUNCTYPE(ctypes.c_int, _F64, _I64, _I64)
FillCall = ctypes.CFUNCTYPE(ctypes.c_int, _I64, _I64, _I64)


_SHAPE = (
    "mode",
    "num_seqs",
    "num_decode_tokens",
    "num_prefill_tokens",
    "decode_context_tokens",
    "prefill_context_tokens",
    "prefill_attention_pairs",
    "num_sampled",
)


class ShapeFields(ctypes.Structure):
    """``Shape`` of native/times.h."""

    _fields_ = tuple((name, _I64) for name in _SHAPE)

    def values(self) -> list[int]:
        """All of them in order."""
        return [getattr(self, name) for name in _SHAPE]


AskCall = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ShapeFields), ctypes.POINTER(_F64), ctypes.POINTER(_F64)
)


class AxisFields(ctypes.Structure):
    """``Axis`` of native/times.h."""

    _fields_ = (("scaled", _POINTER), ("count", _I64), ("is_log", _I64))


class ModeFields(ctypes.Structure):
    """``ModeTables`` of native/times.h."""

    _fields_ = (
        ("body", _POINTER),
        ("tail", _POINTER),
        ("floors", _POINTER),
        ("factors", _POINTER),
        ("decode_seqs", AxisFields),
        ("decode_context", AxisFields),
        ("decode", _POINTER),
        ("prefill_seqs", AxisFields),
        ("prefill_queries", AxisFields),
        ("prefix", AxisFields),
        ("prefill", _POINTER),
        ("shared_s", _F64),
    )


class TimesFields(ctypes.Structure):
    """``Times`` of native/times.h, with its ``Host``."""

    _fields_ = (
        ("num_stages", _I64),
        ("modes", ctypes.POINTER(ModeFields)),
        ("fill", FillCall),
        ("ask", AskCall),
        ("step_s", _F64),
        ("seq_s", _F64),
        ("request_s", _F64),
        ("prompt_token_s", _F64),
        ("prompt_step_s", _F64),
        ("exposed_s", _F64),
        ("exposed_seq_s", _F64),
        ("is_overlapped", _I64),
        ("prefill_scale", _F64),
        ("decode_scale", _F64),
        ("is_scaled", _I64),
    )


class RangeFields(ctypes.Structure):
    """``ModeRange`` of native/scheduler.h."""

    _fields_ = (("mode", _I64), ("most", _I64))


class ToldFields(ctypes.Structure):
    """``Told`` of native/simulate.cpp, with its ``PromptWait``, ``Caps`` and ``TokenLog``."""

    _fields_ = (
        ("num_requests", _I64),
        ("arrival_s", _POINTER),
        ("input_tokens", _POINTER),
        ("output_tokens", _POINTER),
        ("is_closed", _I64),
        ("num_clients", _I64),
        ("limit_s", _F64),
        ("request_s", _F64),
        ("prompt_token_s", _F64),
        ("answer_s", _F64),
        ("busy_s", _F64),
        ("wait_steps", _I64),
        ("wait_share", _F64),
        ("num_replicas", _I64),
        ("max_model_len", _I64),
        ("stops_at_ends", _I64),
        ("look_ahead", _I64),
        ("max_num_seqs", _I64),
        ("max_num_batched_tokens", _I64),
        ("num_blocks", _I64),
        ("block_size", _I64),
        ("depth", _I64),
        ("is_prefill_first", _I64),
        ("num_modes", _I64),
        ("base_mode", _I64),
        ("num_ranges", _I64),
        ("ranges", ctypes.POINTER(RangeFields)),
        ("times", TimesFields),
        ("first", _POINTER),
        ("next", _POINTER),
        ("stamps", _POINTER),
        ("sent_s", _POINTER),
        ("is_refused", _POINTER),
        ("on_progress", ProgressCall),
    )


class OutcomeFields(ctypes.Structure):
    """``Outcome`` of native/simulate.cpp."""

    _fields_ = (
        ("run", _POINTER),
        ("num_sent", _I64),
        ("num_over", _I64),
        ("num_segments", _I64),
        ("num_ends", _I64),
        ("segments", _POINTER),
        ("ends_s", _POINTER),
        ("counts", _POINTER),
        ("seconds", _POINTER),
    )


# ``Segment`` of native/log.h.
SEGMENT = np.dtype(
    [
        ("replica", np.int64),
        *((name, np.int64) for name in _SHAPE),
        ("first_end", np.int64),
        ("num_ends", np.int64),
        ("num_waiting", np.int64),
        ("start_s", np.float64),
        ("busy_s", np.float64),
        ("kv_usage", np.float64),
    ]
)


def find_simulation_library() -> ctypes.CDLL | None:
    """The library, built where needed; None where it cannot be. Looked for once a process, because
    every run asks."""
    return _found(os.environ.get(NO_COMPILER_VARIABLE, ""))


@lru_cache(maxsize=4)
def _found(no_compiler: str) -> ctypes.CDLL | None:
    """Makes :func:`find_library` act as under this value of its variable."""
    del no_compiler
    functions: Functions = {
        "gs_simulate": (ctypes.POINTER(OutcomeFields), [ctypes.POINTER(ToldFields)]),
        "gs_release": (None, [ctypes.POINTER(OutcomeFields)]),
    }
    return open_library(find_library(SOURCE), functions)
