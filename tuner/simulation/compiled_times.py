"""Step times for the compiled run: tables where the timer has some, else questions to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.executors.protocol import StepTimer
from engine.spec.modes import Mode
from engine.spec.settings import Caps
from engine.spec.steps import StepShape
from tuner.backends import ServedTimer
from tuner.hardware.physics import FloatArray
from tuner.hardware.roofline import ModeTables
from tuner.hardware.tables import Axis
from tuner.simulation.native_library import (
    AskCall,
    AxisFields,
    FillCall,
    ModeFields,
    TimesFields,
)
from tuner.step_model.timer import ScaledTimer, StepScale

# Turns a function into one that answers 1 instead of raising; the error is kept.
Guard = Callable[[Callable[..., None]], Callable[..., int]]


class CompiledTimes:
    """``fields`` tell compiled code how long a step of ``timer`` takes, in any of ``modes``, within
    ``caps``. They point to what this object holds."""

    def __init__(
        self, timer: StepTimer, modes: Sequence[Mode], caps: Caps, num_stages: int, guard: Guard
    ) -> None:
        self._held: list[Any] = []
        scale, inner = StepScale(), timer
        if isinstance(timer, ScaledTimer):
            scale, inner = timer.scale, timer.inner
        tables = _tables(inner, modes, caps) if isinstance(inner, ServedTimer) else None
        if isinstance(inner, ServedTimer) and tables is not None:
            self.fields = self._looked_up(inner, tables, scale, num_stages, guard)
        else:
            self.fields = self._asked(timer, modes, num_stages, guard)

    def _looked_up(
        self,
        timer: ServedTimer,
        tables: list[ModeTables],
        scale: StepScale,
        num_stages: int,
        guard: Guard,
    ) -> TimesFields:
        host = timer.host

        @guard
        def fill(mode: int, tokens: int, sampled: int) -> None:
            tables[mode].fill(tokens, sampled)

        return TimesFields(
            num_stages=num_stages,
            modes=(ModeFields * len(tables))(*map(self._mode, tables)),
            fill=FillCall(fill),
            step_s=host.step_s,
            seq_s=host.seq_s,
            request_s=host.request_s,
            prompt_token_s=host.prompt_token_s,
            prompt_step_s=timer.prompt_step_s,
            exposed_s=host.exposed_s,
            exposed_seq_s=host.exposed_seq_s,
            is_overlapped=host.is_overlapped,
            is_scaled=not scale.is_one,
            prefill_scale=scale.prefill,
            decode_scale=scale.decode,
        )

    def _asked(
        self, timer: StepTimer, modes: Sequence[Mode], num_stages: int, guard: Guard
    ) -> TimesFields:
        @guard
        def ask(asked: Any, stage_s: Any, host_s: Any) -> None:
            shape = shape_of(asked[0].values(), modes)
            for stage, seconds in enumerate(timer.stage_seconds(shape)):
                stage_s[stage] = seconds
            host_s[0] = timer.host_seconds(shape)

        return TimesFields(num_stages=num_stages, ask=AskCall(ask))

    def _mode(self, tables: ModeTables) -> ModeFields:
        attention = tables.attention
        decode, prefill = attention.decode, attention.prefill
        layers = prefill.layers
        return ModeFields(
            body=self._hold(tables.fixed.body),
            tail=self._hold(tables.fixed.tail),
            floors=self._hold(np.array(tables.floors)),
            factors=self._hold(np.array(tables.factors)),
            decode_seqs=self._axis(decode.first),
            decode_context=self._axis(decode.second),
            decode=self._hold(decode.logs),
            prefill_seqs=self._axis(layers[0].first),
            prefill_queries=self._axis(layers[0].second),
            prefix=self._axis(prefill.last),
            prefill=self._hold(np.stack([layer.logs for layer in layers])),
            shared_s=attention.shared_s,
        )

    def _axis(self, axis: Axis) -> AxisFields:
        scaled = axis.scaled
        return AxisFields(scaled=self._hold(scaled), count=len(scaled), is_log=axis.is_log)

    def _hold(self, array: FloatArray) -> int:
        """The address of an array, which lives as long as this object."""
        array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        assert array.dtype == np.float64, "compiled code reads f8"
        self._held.append(array)
        return array.ctypes.data


def shape_of(told: Sequence[int], modes: Sequence[Mode]) -> StepShape:
    """The shape that compiled code tells of by the values of ``ShapeFields``."""
    mode, seqs, decodes, prefill, decode_context, prefill_context, pairs, sampled = told
    return StepShape(
        mode=modes[mode],
        num_seqs=seqs,
        num_decode_tokens=decodes,
        num_prefill_tokens=prefill,
        decode_context_tokens=decode_context,
        prefill_context_tokens=prefill_context,
        prefill_attention_pairs=pairs,
        num_sampled=sampled,
    )


def _tables(timer: ServedTimer, modes: Sequence[Mode], caps: Caps) -> list[ModeTables] | None:
    """The timer's tables of each mode; None where one has none."""
    tokens = caps.max_num_batched_tokens
    sampled = min(tokens, caps.max_num_seqs)
    found = [timer.tables(mode, tokens=tokens, sampled=sampled) for mode in modes]
    return [each for each in found if each is not None] if None not in found else None
