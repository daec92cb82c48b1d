"""The requests of a simulated run: numbered, with when each is sent and what it asks."""

from __future__ import annotations

import heapq

import msgspec

from engine.spec.request import Request, SamplingParams
from tuner.spec.front_end import FrontEnd
from tuner.workload.prompts import PromptMaker
from tuner.workload.workload import Workload

NEVER_S = float("inf")


class Sent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Request ``number`` was sent at ``sent_s`` and is seen by the scheduler at ``seen_s``;
    ``is_in``: it has been taken in, else that is to be asked for first."""

    number: int
    sent_s: float
    seen_s: float
    is_in: bool


class RequestSource:
    """Sends the requests of a workload: at their times, or as clients get their answers.

    Without ``has_content`` every prompt is zeros, since time depends on lengths only.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        front_end: FrontEnd,
        seed: int,
        has_content: bool,
        vocab_size: int,
    ) -> None:
        self.sent_s = [0.0] * len(workload)
        self._arrivals = workload.arrivals
        self._closed = workload.closed
        self._front_end = front_end
        self._seed = seed
        self._maker = PromptMaker(seed=seed, vocab_size=vocab_size) if has_content else None
        self._zeros: dict[int, tuple[int, ...]] = {}
        self._sampling: dict[int, SamplingParams] = {}
        self._on_the_way: list[tuple[float, int, bool]] = []
        self._next = 0
        if self._closed is None:
            for arrival in workload.arrivals:
                self._send_next(arrival.arrival_s)
        else:
            for client in range(min(self._closed.concurrency, len(workload))):
                self._send_next(self._closed.start_s(client))

    @property
    def next_s(self) -> float:
        """When the next request comes or is seen by the scheduler, as far as is known."""
        return self._on_the_way[0][0] if self._on_the_way else NEVER_S

    def take(self) -> Sent:
        """The next request to be taken in (:meth:`come_in` once it is), or to be seen."""
        seen_s, number, is_in = heapq.heappop(self._on_the_way)
        return Sent(number=number, sent_s=self.sent_s[number], seen_s=seen_s, is_in=is_in)

    def seconds_in(self, sent: Sent) -> float:
        """What it takes to take a request in."""
        return self._front_end.seconds_in(self._arrivals[sent.number].input_tokens)

    def come_in(self, sent: Sent, seen_s: float) -> None:
        """The scheduler sees a request at ``seen_s``."""
        heapq.heappush(self._on_the_way, (seen_s, sent.number, True))

    def follow_up(self, ended_s: float) -> None:
        """Send the next request of a closed loop, once the client knows of the last one's end."""
        if self._closed is None or self._next == len(self._arrivals):
            return
        now_s = ended_s + self._front_end.answer_s
        if self._closed.limit_s is None or now_s < self._closed.limit_s:
            self._send_next(now_s)

    def request(self, sent: Sent) -> Request:
        """What the engine is asked."""
        arrival = self._arrivals[sent.number]
        if self._maker is not None:
            prompt = self._maker.make(sent.number, arrival)
        else:
            prompt = self._zeros_of(arrival.input_tokens)
        return Request(
            request_id=str(sent.number),
            prompt_ids=prompt,
            sampling=self._sampling_of(arrival.output_tokens),
            arrival_s=sent.seen_s,
            priority=arrival.priority,
        )

    def _zeros_of(self, length: int) -> tuple[int, ...]:
        zeros = self._zeros.get(length)
        if zeros is None:
            zeros = self._zeros[length] = (0,) * length
        return zeros

    def _sampling_of(self, output_tokens: int) -> SamplingParams:
        sampling = self._sampling.get(output_tokens)
        if sampling is None:
            sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, seed=self._seed)
            self._sampling[output_tokens] = sampling
        return sampling

    def _send_next(self, now_s: float) -> None:
        number = self._next
        self._next += 1
        self.sent_s[number] = now_s
        sent = Sent(number=number, sent_s=now_s, seen_s=now_s, is_in=False)
        if self._front_end.takes_turns:
            heapq.heappush(self._on_the_way, (now_s, number, False))
        else:
            self.come_in(sent, now_s + self.seconds_in(sent))

    @property
    def num_sent(self) -> int:
        return self._next
