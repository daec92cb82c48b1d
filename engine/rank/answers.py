"""A step's answer, which the device may still be computing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.cuda import is_reached
from engine.rank.step_times import StepTimes
from engine.sampling.logprobs import RowLogprobs
from engine.sampling.sampler import SampledTokens
from engine.spec.steps import LogprobArrays, StepResult


@dataclass(frozen=True, kw_only=True)
class HostAnswer:
    """What a step sampled, on its way to this host: ``token_ids`` i4[R], logits if asked for."""

    token_ids: Tensor
    sampled_logprobs: RowLogprobs | None
    prompt_logprobs: RowLogprobs | None
    logits: Tensor | None

    @classmethod
    def of(
        cls,
        tokens: SampledTokens | None,
        *,
        prompt_logprobs: RowLogprobs | None,
        logits: Tensor | None,
    ) -> HostAnswer:
        """Queue the copies of ``tokens`` (None: the step samples nothing), of the log
        probabilities of its prompts, and of ``logits`` f[R, vocab_size].
        """
        ids = torch.empty(0, dtype=torch.int32) if tokens is None else tokens.ids.int()
        return cls(
            token_ids=to_host(ids),
            sampled_logprobs=_on_host(None if tokens is None else tokens.logprobs),
            prompt_logprobs=_on_host(prompt_logprobs),
            logits=None if logits is None else to_host(logits),
        )

    def fill_in(self, result: StepResult) -> None:
        """Write it into ``result``; the copies must have arrived."""
        result.token_ids = _raw(self.token_ids)
        result.logits = None if self.logits is None else _raw(self.logits)
        result.sampled_logprobs = _arrays(self.sampled_logprobs)
        result.prompt_logprobs = _arrays(self.prompt_logprobs)


class PendingAnswer:
    """A step that has been queued on the device, or is done already (on CPU).

    Whoever runs the steps sets ``idle_s`` (see ``StepResult``) and ``prepare_wait_s``, how long the
    computing thread waited for the step's inputs, before calling :meth:`wait`.
    """

    def __init__(
        self, step_id: int, *, answer: HostAnswer, times: StepTimes, done: torch.cuda.Event | None
    ) -> None:
        self.step_id = step_id
        self.idle_s = 0.0
        self.prepare_wait_s = 0.0
        self._answer = answer
        self._times = times
        self._done = done
        self._finished_s = time.perf_counter()

    @property
    def is_deferred(self) -> bool:
        """Whether :meth:`wait` may block for the device; False on CPU."""
        return self._done is not None

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return self._done is None or is_reached(self._done)

    @property
    def finished_s(self) -> float:
        """When the step ended, on ``time.perf_counter``; if deferred, when :meth:`wait` saw it."""
        return self._finished_s

    def wait(self) -> StepResult:
        """The result, as soon as the device is done with the step."""
        if self._done is not None:
            self._done.synchronize()
            self._finished_s = time.perf_counter()
        result = StepResult(step_id=self.step_id)
        self._answer.fill_in(result)
        self._times.fill_in(result)
        result.idle_s = self.idle_s
        result.input_exposed_s += self.prepare_wait_s
        return result


def to_host(tensor: Tensor) -> Tensor:
    """``tensor`` in host memory; from CUDA it is there once the device has reached this point."""
    if not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def _on_host(rows: RowLogprobs | None) -> RowLogprobs | None:
    if rows is None:
        return None
    return RowLogprobs(
        ids=to_host(rows.ids), logprobs=to_host(rows.logprobs), ranks=to_host(rows.ranks)
    )


def _arrays(rows: RowLogprobs | None) -> LogprobArrays | None:
    if rows is None:
        return None
    return LogprobArrays(
        num_best=rows.num_best,
        ids=_raw(rows.ids),
        logprobs=_raw(rows.logprobs),
        ranks=_raw(rows.ranks),
    )


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
