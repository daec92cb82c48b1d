"""What a caller sees of one request: tokens, printable text, stop strings, time stamps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.measurement import Outcome, RequestTiming
from engine.request import FinishReason, Request, RequestOutput

OnOutput = Callable[[RequestOutput], None]


class TextStream(Protocol):
    """Incremental detokenisation of one sequence."""

    def push(self, token_id: int) -> str:
        """Text that became printable with this token ("" while a character is incomplete)."""
        ...

    def flush(self) -> str:
        """Text still held back, at the end of the sequence."""
        ...


class StopFinder:
    """Finds stop strings across token borders; text that may begin one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was completed."""
        self._held += text
        hits = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            shown, self._held = self._held[: min(hits)], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """Text still held back, when the sequence ends without its stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class RequestStream:
    """One accepted request's way back to its caller."""

    def __init__(self, request: Request, on_output: OnOutput, text: TextStream | None) -> None:
        self.request = request
        self.logits: list[npt.NDArray[np.float64]] = []
        self.scheduled_s: float | None = None
        self._on_output = on_output
        self._text = text
        self._stops = StopFinder(request.sampling.stop)
        self._token_s: list[float] = []

    def push(self, token_id: int, reason: FinishReason | None, now_s: float) -> FinishReason | None:
        """Hand one token to the caller; returns STOP when it completed a stop string.

        The token that ends a sequence by its id (EOS, stop id) is counted but not shown.
        """
        self._token_s.append(now_s)
        is_hidden = reason is FinishReason.STOP
        text, is_stopped = "", False
        if self._text is not None and not is_hidden:
            text, is_stopped = self._stops.push(self._text.push(token_id))
        if is_stopped:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self._rest()
        self._emit((token_id,), text, reason, now_s)
        return FinishReason.STOP if is_stopped else None

    def end(self, reason: FinishReason, now_s: float, error: str | None = None) -> None:
        """End without a token: aborted, or failed with ``error``."""
        self._emit((), self._rest(), reason, now_s, error)

    def timing(self, reason: FinishReason) -> RequestTiming:
        """Its stamps, for the engine's own record (ttft.server.v1 counts from arrival)."""
        is_good = reason in (FinishReason.STOP, FinishReason.LENGTH)
        outcome = Outcome.COMPLETED if is_good else Outcome.ERRORED
        if reason is FinishReason.ABORT:
            outcome = Outcome.CUT
        return RequestTiming(
            scheduled_s=self.request.arrival_s,
            sent_s=self.request.arrival_s,
            token_s=tuple(self._token_s),
            prompt_tokens=len(self.request.prompt_ids),
            outcome=outcome,
        )

    def _rest(self) -> str:
        """Text held back for an incomplete character or a stop string that never came."""
        if self._text is None:
            return ""
        shown, is_stopped = self._stops.push(self._text.flush())
        return shown if is_stopped else shown + self._stops.flush()

    def _emit(
        self,
        token_ids: tuple[int, ...],
        text: str,
        reason: FinishReason | None,
        now_s: float,
        error: str | None = None,
    ) -> None:
        self._on_output(
            RequestOutput(
                request_id=self.request.request_id,
                token_ids=token_ids,
                text=text,
                finish_reason=reason,
                token_s=now_s,
                error=error,
                scheduled_s=self.scheduled_s,
            )
        )
