"""What a load driver drives: the protocol of a target, and an engine in this process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.spec.energy import EnergyCounters
from engine.spec.errors import EngineError
from engine.spec.measurement import Outcome
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams

if TYPE_CHECKING:
    from engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a target finished one request. ``sent_s`` is when it really left, if known."""

    outcome: Outcome
    sent_s: float | None = None
    error: str | None = None


OnToken = Callable[[float], None]
OnDone = Callable[[Ending], None]


class LoadTarget(Protocol):
    """Something that continues prompts. All times are on ``time.monotonic``.

    Every implementation passes ``tests/contracts/load_target.py``.
    """

    def send(
        self,
        index: int,
        prompt_ids: tuple[int, ...],
        output_tokens: int,
        on_token: OnToken,
        on_done: OnDone,
    ) -> None:
        """Start request ``index`` (unique per target) and return at once, without raising.

        Exactly ``output_tokens`` tokens are wanted, whatever they say. The callbacks may come on
        any thread: ``on_token`` once per token with its stamp, in order, then ``on_done`` once.
        """
        ...

    def cancel(self, index: int) -> None:
        """Give the request up and free what it holds; ``on_done`` may still come or not."""
        ...

    def read_energy(self) -> EnergyCounters:
        """Joules that the devices behind it have taken so far; empty if it does not tell.

        It may wait a moment for the answer.
        """
        ...


def spread_stamps(previous_s: float | None, received_s: float, count: int) -> list[float]:
    """Stamps of ``count`` tokens that came together: the gap before them, divided among them.

    Without an earlier stamp nothing is known about the gap and all of them get ``received_s``.
    """
    if previous_s is None:
        return [received_s] * count
    gap_s = received_s - previous_s
    return [previous_s + gap_s * (i + 1) / count for i in range(count - 1)] + [received_s] * (
        count > 0
    )


class EngineTarget:
    """An engine in this process. Stamps are the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # An engine refuses an id in use, and an aborted request of an earlier run may still be.
        self._name = f"load-{secrets.token_hex(4)}"

    def send(
        self,
        index: int,
        prompt_ids: tuple[int, ...],
        output_tokens: int,
        on_token: OnToken,
        on_done: OnDone,
    ) -> None:
        """See :class:`LoadTarget`; a request that the engine refuses ends as errored."""
        receiver = _Receiver(on_token, on_done)
        try:
            sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
            request = Request(
                request_id=self._request_id(index),
                prompt_ids=prompt_ids,
                sampling=sampling,
                arrival_s=time.monotonic(),
            )
            self._engine.submit(request, receiver.take)
        except EngineError as error:
            on_done(Ending(outcome=Outcome.ERRORED, error=str(error)))

    def cancel(self, index: int) -> None:
        """See :class:`LoadTarget`; aborts the request."""
        self._engine.abort(self._request_id(index))

    def read_energy(self) -> EnergyCounters:
        """See :class:`LoadTarget`."""
        return self._engine.read_energy()

    def _request_id(self, index: int) -> str:
        return f"{self._name}-{index}"


class _Receiver:
    """Turns the outputs of one request into stamps and its ending."""

    def __init__(self, on_token: OnToken, on_done: OnDone) -> None:
        self._on_token = on_token
        self._on_done = on_done
        self._last_s: float | None = None

    def take(self, output: RequestOutput) -> None:
        for stamp in spread_stamps(self._last_s, output.token_s, len(output.token_ids)):
            self._on_token(stamp)
            self._last_s = stamp
        match output.finish_reason:
            case None:
                return
            case FinishReason.STOP | FinishReason.LENGTH:
                self._on_done(Ending(outcome=Outcome.COMPLETED))
            case FinishReason.ABORT | FinishReason.ERROR:
                error = output.error or f"ended with reason {output.finish_reason}"
                self._on_done(Ending(outcome=Outcome.ERRORED, error=error))
