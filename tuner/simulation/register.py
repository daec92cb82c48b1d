"""What became of the requests of a simulated run, by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec.measurement import RequestTiming
from tuner.simulation.log import TokenLog
from tuner.simulation.requests import Sent
from tuner.workload.workload import Workload


class Register:
    """Who came in, who was refused, and who has all tokens."""

    def __init__(self, workload: Workload, log: TokenLog) -> None:
        self.refused: set[int] = set()
        self._arrivals = workload.arrivals
        self._log = log
        # Requests that have ended or were refused.
        self.num_over = 0
        # When the scheduler saw each request that was not refused.
        self._seen_s: dict[int, float] = {}
        self._ended: list[tuple[float, int]] = []

    # -- questions ---------------------------------------------------------------------------

    @property
    def num_inside(self) -> int:
        """Accepted requests that have not ended."""
        return len(self._seen_s) - len(self._ended)

    @property
    def num_refused(self) -> int:
        return len(self.refused)

    @property
    def longest_inside(self) -> int:
        """Most tokens that an accepted request will have when it ends; 0 while there is none."""
        inside = self._seen_s.keys() - {number for _, number in self._ended}
        arrivals = (self._arrivals[number] for number in inside)
        return max((a.input_tokens + a.output_tokens for a in arrivals), default=0)

    def timings_since(self, since_s: float) -> Sequence[RequestTiming]:
        """Accepted requests that ended at ``since_s`` or later, in the order of their ends; their
        times are the engine's own, as heartbeats have them."""
        first = len(self._ended)
        while first and self._ended[first - 1][0] >= since_s:
            first -= 1
        return [self._timing(number) for _, number in self._ended[first:]]

    # -- commands ----------------------------------------------------------------------------

    def come(self, sent: Sent) -> None:
        self._seen_s[sent.number] = sent.seen_s

    def refuse(self, sent: Sent) -> None:
        """Strike off a request that came and is not accepted."""
        del self._seen_s[sent.number]
        self.refused.add(sent.number)
        self.num_over += 1

    def end(self, number: int, now_s: float) -> None:
        """A request has all its tokens."""
        self._ended.append((now_s, number))
        self.num_over += 1

    # -- parts -------------------------------------------------------------------------------

    def _timing(self, number: int) -> RequestTiming:
        return RequestTiming(
            scheduled_s=self._seen_s[number],
            sent_s=self._seen_s[number],
            token_s=self._log.stamps(number),
            prompt_tokens=self._arrivals[number].input_tokens,
        )
