"""What a caller sees of one request: tokens, printable text, stop strings, time stamps."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engine.spec.measurement import Outcome, RequestTiming
from engine.spec.request import FinishReason, Request, RequestOutput, TokenLogprobs
from engine.text.detokenizer import OutputText, TextStream

logger = logging.getLogger(__name__)

OnOutput = Callable[[RequestOutput], None]


class RequestStream:
    """One accepted request's way back to its caller, and the stamps of what went that way.

    Both an engine and a front process, each at its end of the line, have one per request. Without
    ``text`` the outputs hold tokens only; whoever detokenises them looks for stop strings. Owned by
    the thread that takes.
    """

    def __init__(self, request: Request, on_output: OnOutput, text: TextStream | None) -> None:
        self.request = request
        self.logits: list[npt.NDArray[np.float64]] = []
        self.scheduled_s: float | None = None
        self._on_output = on_output
        self._text: OutputText | None = None
        if text is not None:
            sampling = request.sampling
            self._text = OutputText(text, sampling.stop, min_tokens=sampling.min_tokens)
        self._token_s = array("d")
        self._prompt_logprobs: list[TokenLogprobs] = []

    def add_prompt_logprobs(self, first: int, found: Sequence[TokenLogprobs]) -> None:
        """Keep what is told of prompt tokens ``first + 1`` on, to go out with the first token.

        A prompt that is computed again, after a preemption or on other ranks, is reported again;
        what is known already stays as it is.
        """
        known = len(self._prompt_logprobs)
        assert first <= known, f"tokens {known + 1}..{first} of the prompt are not told of"
        self._prompt_logprobs += found[known - first :]

    def take(
        self,
        token_id: int,
        reason: FinishReason | None,
        now_s: float,
        logprobs: TokenLogprobs | None = None,
    ) -> RequestOutput:
        """The output that shows one token; its reason is STOP when it completed a stop string.

        The token that ends a sequence by its id (EOS, stop id) is counted but not shown. Runs
        once per sequence and step on the step loop's thread: about a microsecond without text.
        """
        is_first = not self._token_s
        self._token_s.append(now_s)
        text, is_stopped = "", False
        if self._text is not None:
            text, is_stopped = _shown_text(self._text, token_id, reason)
        return RequestOutput(
            request_id=self.request.request_id,
            token_ids=(token_id,),
            text=text,
            finish_reason=FinishReason.STOP if is_stopped else reason,
            token_s=now_s,
            scheduled_s=self.scheduled_s,
            logprobs=() if logprobs is None else (logprobs,),
            prompt_logprobs=tuple(self._prompt_logprobs) if is_first else (),
        )

    def last(self, reason: FinishReason, now_s: float, error: str | None = None) -> RequestOutput:
        """The output of an end without a token: aborted, past its deadline, failed with
        ``error``."""
        return RequestOutput(
            request_id=self.request.request_id,
            token_ids=(),
            text="" if self._text is None else self._text.flush()[0],
            finish_reason=reason,
            token_s=now_s,
            error=error,
            scheduled_s=self.scheduled_s,
        )

    def hand_out(self, output: RequestOutput) -> bool:
        """Give the caller an output; returns False, and logs it, if that failed: one caller's fault
        must not end the others' requests."""
        try:
            self._on_output(output)
        except Exception:
            logger.exception("request %s: its output went astray", self.request.request_id)
            return False
        return True

    def end(self, reason: FinishReason, now_s: float, error: str | None = None) -> None:
        """Hand out the :meth:`last` output."""
        self.hand_out(self.last(reason, now_s, error))

    def timing(self, reason: FinishReason) -> RequestTiming:
        """Its time stamps, for the engine's own record (ttft.server.v1 counts from arrival)."""
        outcome = Outcome.COMPLETED if reason.is_whole else Outcome.ERRORED
        if reason is FinishReason.ABORT:
            outcome = Outcome.CUT
        return RequestTiming(
            scheduled_s=self.request.arrival_s,
            sent_s=self.request.arrival_s,
            token_s=tuple(self._token_s),
            prompt_tokens=len(self.request.prompt_ids),
            outcome=outcome,
        )


def _shown_text(text: OutputText, token_id: int, reason: FinishReason | None) -> tuple[str, bool]:
    """Text to show with a token, and whether the token completed a stop string.

    ``reason`` is why the engine ends the output with this token, if it does; it sees no stop
    strings.
    """
    shown, is_stopped = "", False
    if reason is not FinishReason.STOP:
        shown, is_stopped = text.push(token_id)
    if reason is not None and not is_stopped:
        rest, is_stopped = text.flush()
        shown += rest
    return shown, is_stopped
