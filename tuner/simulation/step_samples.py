"""A simulated run's telemetry in the live engine's own terms: one sample per step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from engine.scheduler.skipping import with_more_context
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepSample, StepShape, size_class
from policies.drift import StepSum, step_sums
from tuner.simulation.log import PlanSpell, Segment


def step_samples(segments: Sequence[Segment], spells: Sequence[PlanSpell]) -> Iterator[StepSample]:
    """Samples of every step of ``segments``, in the order of their ends; ``spells`` tell the plan.

    Times are on the run's virtual clock. The simulation knows only two parts of a step:
    ``forward_s`` is all of the ranks' time, and ``bubble_s`` is how long they waited for the host.
    """
    steps = sorted(_steps(segments), key=lambda step: step[1])
    last_end_s: dict[int, float] = {}
    for step_id, (segment, end_s, start_s, shape) in enumerate(steps):
        plan = next(s.plan for s in reversed(spells) if s.from_s <= start_s)
        busy_s = segment.busy_s / segment.num_steps
        # A step that was queued behind another one starts when that ends.
        before_s = last_end_s.get(segment.replica, start_s)
        last_end_s[segment.replica] = end_s
        if spells[0].plan.pp == 1:
            start_s = max(start_s, before_s)
        yield StepSample(
            step_id=step_id,
            plan=str(plan),
            replica=segment.replica,
            shape=shape,
            padded_tokens=_padded(shape, plan),
            start_s=start_s,
            step_s=end_s - start_s,
            schedule_s=0.0,
            input_s=0.0,
            forward_s=busy_s,
            communication_s=0.0,
            sample_s=0.0,
            output_s=0.0,
            kv_usage=segment.kv_usage,
            bubble_s=max(0.0, end_s - start_s - busy_s) if plan.pp == 1 else 0.0,
            busy_s=end_s - max(start_s, before_s),
        )


def summed(segments: Iterable[Segment]) -> tuple[StepSum, ...]:
    """Steps by mode and size class, as heartbeats of a live engine tell of them."""
    return step_sums(
        {
            "mode": segment.shape.mode,
            "tokens_up_to": size_class(segment.shape.num_tokens),
            "steps": segment.num_steps,
            "seconds": segment.busy_s,
            "tokens": segment.num_steps * segment.shape.num_tokens,
        }
        for segment in segments
    )


def _steps(segments: Sequence[Segment]) -> Iterator[tuple[Segment, float, float, StepShape]]:
    """Segment, end, start and shape of each step."""
    for segment in segments:
        start_s = segment.start_s
        for nth, end_s in enumerate(segment.end_s):
            shape = with_more_context(segment.shape, nth * segment.shape.num_seqs)
            yield segment, end_s, start_s, segment.shape if nth == 0 else shape
            start_s = end_s


def _padded(shape: StepShape, plan: ParallelPlan) -> int:
    """Tokens of the step, with the padding that fills the slices of its mode."""
    slices = plan.rung(shape.mode).sp
    return -(-shape.num_tokens // slices) * slices
