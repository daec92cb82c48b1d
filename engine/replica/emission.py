"""Hands a committed step to its callers and its telemetry, while the next step runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from engine.replica.step_loop import FinishedStep
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry
from engine.scheduler.scheduler import Scheduler
from engine.spec.plan import ParallelPlan
from engine.spec.request import NO_FINITE_LOGIT, FinishReason, RequestOutput, TokenLogprobs
from engine.spec.steps import LogprobArrays, StepSample, float32, int32, num_scored

logger = logging.getLogger(__name__)

StreamOutput = tuple[RequestStream, RequestOutput]


class StepEmitter:
    """Counts each step of one replica, and hands its tokens out by their streams."""

    def __init__(
        self,
        streams: Mapping[str, RequestStream],
        telemetry: Telemetry,
        scheduler: Scheduler,
        *,
        replica: int,
        plan: ParallelPlan,
    ) -> None:
        self._streams = streams
        self._telemetry = telemetry
        self._scheduler = scheduler
        self._replica = replica
        self._plan = plan
        self._counted = scheduler.counts
        # A step is counted before it is handed out, so it counts the output time of the step
        # before.
        self._handed_s = 0.0
        self._last_output_s = 0.0

    def make(self, finished: FinishedStep) -> list[StreamOutput]:
        """What the step has for its callers. It is counted before they see it, so that whoever has
        an answer finds it in the counters."""
        begun_s = time.monotonic()
        self._stamp_first_steps(finished)
        self._push_scores(finished)
        made = [*self._take_tokens(finished), *self._fail(finished)]
        counts, self._counted = self._scheduler.counts - self._counted, self._scheduler.counts
        self._telemetry.record_counts(counts)
        output_s = self._handed_s + time.monotonic() - begun_s
        self._telemetry.record_step(self._sample(finished, output_s))
        self._last_output_s = output_s
        return made

    def hand_out(self, made: Iterable[StreamOutput]) -> list[RequestStream]:
        """Call the callers; returns the streams whose callers failed."""
        begun_s = time.monotonic()
        failed = [stream for stream, output in made if not stream.hand_out(output)]
        self._handed_s = time.monotonic() - begun_s
        return failed

    def _stamp_first_steps(self, finished: FinishedStep) -> None:
        """Note when requests entered their first step (the end of their queue time), and how much
        of their prompts was cached."""
        for placed in finished.step.placed:
            stream = self._streams.get(placed.sequence.request_id)
            if stream is not None and stream.scheduled_s is None:
                stream.scheduled_s = finished.flight.submitted_s
                self._telemetry.record_begin(
                    prompt_tokens=placed.sequence.prompt_len,
                    cached=placed.num_cached,
                    is_looked_up=self._scheduler.running.looks_up(placed.sequence),
                )

    def _push_scores(self, finished: FinishedStep) -> None:
        """Give the streams what the step tells of the prompts' own tokens, to hand out later."""
        step, scores = finished.step, finished.result.prompt_logprobs
        if scores is None:
            return
        first = 0
        for row, sequence in enumerate(step.sequences):
            request = sequence.request
            wanted = request.sampling.prompt_logprobs
            if wanted is None:
                continue
            before = int(step.context_lens[row])
            count = num_scored(before, int(step.query_lens[row]), len(request.prompt_ids))
            stream = self._streams.get(request.request_id)
            if count and stream is not None and stream.request is request:
                found = [token_logprobs(scores, first + nth, wanted) for nth in range(count)]
                stream.add_prompt_logprobs(before, found)
            first += count

    def _take_tokens(self, finished: FinishedStep) -> Iterator[StreamOutput]:
        outcome, result = finished.outcome, finished.result
        reasons = {sequence.request_id: reason for sequence, reason in outcome.finished}
        logits = None if result.logits is None else _rows(result.logits, finished.step.num_sampled)
        for row, (sequence, token_id) in zip(outcome.sampled_rows, outcome.sampled, strict=True):
            request_id = sequence.request_id
            stream = self._streams.get(request_id)
            if stream is None or stream.request is not sequence.request:
                continue  # it was aborted after the step had begun
            self._telemetry.generation_tokens += 1
            if logits is not None:
                stream.logits.append(logits[row])
            wanted = sequence.request.sampling.logprobs
            found = None
            if wanted is not None and result.sampled_logprobs is not None:
                found = token_logprobs(result.sampled_logprobs, row, wanted)
            yield stream, stream.take(token_id, reasons.get(request_id), finished.ended_s, found)

    def _fail(self, finished: FinishedStep) -> Iterator[StreamOutput]:
        """The ends of sequences that got no token."""
        failed = finished.outcome.failed
        if failed and not self._telemetry.non_finite_logits:
            logger.error(
                "request %s ended with an error: %s. Likely an overflow of the number format "
                "(try --dtype bfloat16 or float32), or weights of which some are wrong; the same "
                "is counted from here on and not logged again",
                failed[0].request_id,
                NO_FINITE_LOGIT,
            )
        self._telemetry.non_finite_logits += len(failed)
        for sequence in failed:
            stream = self._streams.get(sequence.request_id)
            if stream is not None and stream.request is sequence.request:
                yield stream, stream.last(FinishReason.ERROR, finished.ended_s, NO_FINITE_LOGIT)

    def _sample(self, finished: FinishedStep, output_s: float) -> StepSample:
        flight, result, shape = finished.flight, finished.result, finished.step.shape
        multiple = self._plan.rung(shape.mode).sp
        # It was the host's last work before the step that held the ranks up, so the bubble is
        # filled from its end.
        parts = (flight.message_s, flight.schedule_s, self._last_output_s)
        message_s, schedule_s, exposed_output_s = _fill(finished.bubble_s, parts)
        table = self._scheduler.packer.chooser.table
        return StepSample(
            step_id=finished.step.step_id,
            plan=str(self._plan),
            replica=self._replica,
            shape=shape,
            padded_tokens=-(-shape.num_tokens // multiple) * multiple,
            start_s=finished.ended_s - finished.step_s,
            step_s=finished.step_s,
            schedule_s=flight.schedule_s,
            input_s=flight.message_s + result.input_s,
            forward_s=result.forward_s,
            communication_s=result.communication_s,
            sample_s=result.sample_s,
            output_s=output_s,
            kv_usage=self._scheduler.kv_usage,
            schedule_exposed_s=schedule_s,
            input_exposed_s=message_s + result.input_exposed_s,
            output_exposed_s=exposed_output_s,
            bubble_s=finished.bubble_s,
            other_mode_s=table.other_s(shape.mode, shape.num_tokens) if table else None,
            regret_s=table.regret_s(shape.mode, shape.num_tokens) if table else 0.0,
            busy_s=finished.busy_s,
        )


def token_logprobs(arrays: LogprobArrays, row: int, num_best: int) -> TokenLogprobs:
    """Log probabilities of one row of ``arrays``, with its ``num_best`` best tokens."""
    width = 1 + arrays.num_best
    ids = int32(arrays.ids)[row * width : (row + 1) * width].tolist()
    values = float32(arrays.logprobs)[row * width : (row + 1) * width].tolist()
    best = zip(ids[1 : num_best + 1], values[1 : num_best + 1], strict=True)
    return TokenLogprobs(
        token_id=ids[0],
        logprob=values[0],
        rank=int(int32(arrays.ranks)[row]),
        top=tuple(best),
    )


def _rows(raw: bytes, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.frombuffer(raw, np.float64).reshape(count, -1)


def _fill(total_s: float, parts: tuple[float, ...]) -> Iterator[float]:
    """How much of each part lies in the last ``total_s`` seconds; the last part comes first."""
    for part_s in parts:
        covered_s = min(part_s, total_s)
        total_s -= covered_s
        yield covered_s
