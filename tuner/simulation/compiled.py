"""A run in compiled code: the same events in the same order as :class:`tuner.simulation.run.Run`,
which is its oracle and takes over where it cannot run. Answers are equal, and come much sooner.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from engine.spec.measurement import Distribution, Fidelity, Measurement
from engine.spec.modes import BASE, Mode
from engine.spec.settings import Order, Settings, StepOrder
from engine.transition.planning import first_slots
from tuner.simulation.compiled_times import CompiledTimes, shape_of
from tuner.simulation.log import (
    DeviceSpell,
    FloatArray,
    IntArray,
    LazySegments,
    PlanSpell,
    RunCounts,
    Segment,
    TokenLog,
)
from tuner.simulation.native_library import (
    SEGMENT,
    OutcomeFields,
    ProgressCall,
    RangeFields,
    ToldFields,
    find_simulation_library,
)
from tuner.simulation.requests import NEVER_S
from tuner.simulation.run import OnProgress, SimulationResult, request_timings
from tuner.simulation.setup import ReplicaSetup, SimulatedEngine, replica_setup
from tuner.spec.look_ahead import LookAhead
from tuner.workload.workload import Workload

_COUNTS = (
    "preemptions",
    "prefix_queries",
    "mode_switches",
    "decode_tokens_in_base",
    "scheduled_steps",
)


def find_compiled_run(
    engine: SimulatedEngine, settings: Settings, workload: Workload
) -> CompiledRun | None:
    """The run without a steering; None if only Python can run it.

    Raises:
        PlanError, PolicyError, TunerError: as :func:`tuner.simulation.simulate.simulate`.
    """
    caps = settings.caps
    is_simple = (
        settings.order is Order.FCFS
        and settings.admission is None
        and caps.max_queue is None
        and caps.max_step_ms is None
        and not engine.keeps_prefixes
    )
    if not is_simple or (library := find_simulation_library()) is None:
        return None
    setup = replica_setup(engine, settings, caps, is_watched=workload.closed is not None)
    if (ranges := setup.chooser.ranges()) is None:
        return None
    return CompiledRun(library, setup, workload, ranges)


class CompiledRun:
    """``workload`` on replicas of ``setup``, whose steps run by ``ranges`` of tokens."""

    def __init__(
        self,
        library: ctypes.CDLL,
        setup: ReplicaSetup,
        workload: Workload,
        ranges: tuple[tuple[Mode, int], ...],
    ) -> None:
        self._library, self._setup, self._workload = library, setup, workload
        self._modes = [mode for mode, _ in ranges]
        self._ranges = (RangeFields * len(ranges))(
            *(RangeFields(place, most) for place, (_, most) in enumerate(ranges))
        )
        self._log = TokenLog(workload.output_tokens)
        self._sent_s = np.zeros(len(workload))
        self._is_refused = np.zeros(len(workload), dtype=np.bool_)
        self._raised: list[BaseException] = []

    def result(self, on_progress: OnProgress) -> SimulationResult:
        """What was measured. Raises what ``on_progress`` does."""
        settings, arrivals = self._setup.settings, self._arrivals
        times = CompiledTimes(
            self._setup.ranks.timer, self._modes, settings.caps, settings.plan.pp, self._guard
        )
        lengths = self._workload.input_tokens, self._workload.output_tokens
        told = self._told(times, arrivals, *lengths)
        told.on_progress = ProgressCall(self._guard(on_progress))
        outcome = self._library.gs_simulate(told)
        if not outcome:
            raise MemoryError("the simulated run did not fit into memory")
        try:
            if self._raised:
                raise self._raised[0]
            return self._result(outcome.contents)
        finally:
            self._library.gs_release(outcome)

    @property
    def _arrivals(self) -> FloatArray:
        """When requests are sent; in a closed loop, when clients send their first."""
        if (closed := self._workload.closed) is None:
            return self._workload.arrival_s
        clients = range(min(closed.concurrency, len(self._workload)))
        return np.array([closed.start_s(client) for client in clients], dtype=np.float64)

    def _told(
        self, times: CompiledTimes, arrivals: FloatArray, inputs: IntArray, outputs: IntArray
    ) -> ToldFields:
        setup, closed = self._setup, self._workload.closed
        engine, plan, caps = setup.engine, setup.settings.plan, setup.settings.caps
        first, following, stamps = self._log.arrays
        return ToldFields(
            num_requests=len(inputs),
            arrival_s=arrivals.ctypes.data,
            input_tokens=inputs.ctypes.data,
            output_tokens=outputs.ctypes.data,
            is_closed=closed is not None,
            num_clients=len(arrivals),
            limit_s=closed.limit_s if closed and closed.limit_s is not None else NEVER_S,
            request_s=engine.front_end.request_s,
            prompt_token_s=engine.front_end.prompt_token_s,
            answer_s=engine.front_end.answer_s,
            busy_s=engine.front_end.busy_s,
            wait_steps=engine.prompt_wait.steps,
            wait_share=engine.prompt_wait.share,
            num_replicas=plan.dp,
            max_model_len=setup.max_model_len,
            stops_at_ends=setup.stops_at_ends,
            look_ahead=tuple(LookAhead).index(engine.look_ahead),
            max_num_seqs=caps.max_num_seqs,
            max_num_batched_tokens=caps.max_num_batched_tokens,
            num_blocks=setup.ranks.num_kv_blocks,
            block_size=engine.block_size,
            depth=plan.pp,
            is_prefill_first=engine.step_order is StepOrder.PREFILL_FIRST,
            num_modes=len(self._modes),
            base_mode=self._modes.index(BASE) if BASE in self._modes else -1,
            num_ranges=len(self._ranges),
            ranges=self._ranges,
            times=times.fields,
            first=first.ctypes.data,
            next=following.ctypes.data,
            stamps=stamps.ctypes.data,
            sent_s=self._sent_s.ctypes.data,
            is_refused=self._is_refused.ctypes.data,
        )

    def _guard(self, function: Callable[..., object]) -> Callable[..., int]:
        """``function`` for compiled code, which cannot raise: it returns 1 if it raised, which ends
        the run."""

        def guarded(*arguments: object) -> int:
            try:
                function(*arguments)
            except BaseException as error:  # raised again once the run has ended
                self._raised.append(error)
                return 1
            return 0

        return guarded

    # -- what came out ---------------------------------------------------------------------------

    def _result(self, outcome: OutcomeFields) -> SimulationResult:
        plan, num_sent = self._setup.settings.plan, outcome.num_sent
        missing = num_sent - outcome.num_over
        assert not missing, f"{missing} of {num_sent} requests never ended"
        rows = _array(outcome.segments, outcome.num_segments, SEGMENT)
        ends_s = _array(outcome.ends_s, outcome.num_ends, np.dtype(np.float64))
        end_s = float(ends_s.max(initial=0.0))
        sizes = np.unique(rows["num_decode_tokens"] + rows["num_prefill_tokens"])
        return SimulationResult(
            measurement=Measurement(
                fidelity=Fidelity.SIMULATED,
                timings=request_timings(
                    self._workload,
                    self._sent_s[:num_sent].tolist(),
                    self._log.token_s(self._setup.engine.front_end.answer_s),
                    set(np.flatnonzero(self._is_refused).tolist()),
                ),
                driver_lag_ms=Distribution.of([0.0]),
            ),
            counts=self._counts(outcome),
            segments=LazySegments(len(rows), partial(_segments, rows, ends_s, self._modes)),
            step_tokens=tuple(sizes.tolist()),
            spells=(PlanSpell(plan=plan, from_s=0.0, to_s=end_s),),
            device_spells=tuple(
                DeviceSpell(num_devices=slot.size, from_s=0.0, to_s=end_s)
                for slot in first_slots(plan)
            ),
        )

    def _counts(self, outcome: OutcomeFields) -> RunCounts:
        """The counts of all replicas together, added up like those of Python's run."""
        num_replicas, num_modes = self._setup.settings.plan.dp, len(self._modes)
        width, integer = len(_COUNTS) + num_modes, np.dtype(np.int64)
        counts = _array(outcome.counts, num_replicas * width, integer)
        seconds = _array(outcome.seconds, num_replicas * num_modes, np.dtype(np.float64))
        parts = []
        for replica in range(num_replicas):
            row = counts[replica * width :][:width].tolist()
            own_s = seconds[replica * num_modes :][:num_modes].tolist()
            part = RunCounts(**dict(zip(_COUNTS, row, strict=False)))
            for mode, steps, mode_s in zip(self._modes, row[len(_COUNTS) :], own_s, strict=True):
                if steps:
                    part.count(mode, steps, mode_s)
            parts.append(part)
        return RunCounts.total(parts)


def _segments(
    rows: np.ndarray[Any, Any], ends_s: FloatArray, modes: Sequence[Mode]
) -> tuple[Segment, ...]:
    """The segments that rows of ``SEGMENT`` tell of."""
    every_s = tuple(ends_s.tolist())
    return tuple(
        Segment(
            replica=replica,
            shape=shape_of(shape, modes),
            start_s=start_s,
            end_s=every_s[first : first + count],
            busy_s=busy_s,
            num_waiting=num_waiting,
            kv_usage=kv_usage,
        )
        for (
            replica,
            *shape,
            first,
            count,
            num_waiting,
            start_s,
            busy_s,
            kv_usage,
        ) in rows.tolist()
    )


def _array(address: int | None, count: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A copy of what a run holds."""
    if not count or address is None:
        return np.empty(0, dtype)
    return np.frombuffer(ctypes.string_at(address, count * dtype.itemsize), dtype)
