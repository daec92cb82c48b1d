"""A scheduler and something that runs its steps, driven turn by turn, message by message."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Protocol

import msgspec

from engine.modes.chooser import ModeChooser
from engine.replica.messages_out import step_plan
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import ScheduledStep
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request
from engine.spec.settings import Caps, Order
from engine.spec.steps import StepPlan, StepResult, int32

BLOCK_SIZE = 4
MAX_MODEL_LEN = 80
PLAN = ParallelPlan(sp=2, shift=True)


class Ranks(Protocol):
    """What runs the steps, in order."""

    def submit(self, step: StepPlan) -> None: ...

    def collect(self) -> StepResult: ...


class StepWorld:
    """``ranks`` get every message as bytes would bring it, ahead of the results before it."""

    def __init__(
        self,
        *,
        ranks: Ranks,
        caps: Caps,
        num_blocks: int,
        depth: int = 1,
        keeps_prefixes: bool = False,
        order: Order = Order.FCFS,
        eos: int,
        coin_seed: int | None = None,
    ) -> None:
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.flights: deque[ScheduledStep] = deque()
        self.message_bytes: list[int] = []
        self._ranks = ranks
        self._caps = caps
        self.scheduler = Scheduler(
            caps=caps,
            envelope=caps,
            chooser=ModeChooser(plan=PLAN, threshold_tokens=8, coin_seed=coin_seed),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            depth=depth,
            order=order,
            eos_token_ids=(eos,),
            keeps_prefixes=keeps_prefixes,
        )

    def fill(self) -> None:
        while (step := self.scheduler.schedule()) is not None:
            self._send(step)

    def look_ahead(self) -> None:
        step = self.scheduler.schedule_ahead()
        if step is not None:
            self._send(step)

    def finish_one(self) -> None:
        result = self._ranks.collect()
        outcome = self.scheduler.commit(self.flights.popleft(), int32(result.token_ids))
        for sequence, token_id in outcome.sampled:
            self.outputs.setdefault(sequence.request_id, []).append(token_id)
        for sequence, reason in outcome.finished:
            assert sequence.request_id not in self.reasons, "it ended twice"
            self.reasons[sequence.request_id] = reason
        self.scheduler.check_integrity()

    def serve(self, requests: Sequence[Request], rng: Random, *, looks_ahead: str) -> set[str]:
        """Run everything to its end, with arrivals, aborts and looks ahead ("never", "always",
        "sometimes") as ``rng`` draws them; the requests aborted.
        """
        waiting, aborted = deque(requests), set[str]()
        while waiting or not self.scheduler.is_idle:
            arrives = rng.randint(0, 3) if waiting else 0
            for _ in range(min(arrives, len(waiting))):
                self.scheduler.add(waiting.popleft())
            alive = [r.request_id for r in requests if r.request_id not in self.reasons]
            if alive and rng.random() < 0.05:
                name = rng.choice(alive)
                if self.scheduler.abort(name) is not None:
                    aborted.add(name)
            self.fill()
            is_late = looks_ahead == "sometimes" and rng.random() < 0.5
            if looks_ahead == "always" or is_late:
                self.look_ahead()
            if self.flights:
                self.finish_one()
        while self.flights:
            self.finish_one()
        return aborted

    def _send(self, step: ScheduledStep) -> None:
        assert step.shape.num_tokens <= self._caps.max_num_batched_tokens
        plan = step_plan(step, eos_token_ids=self.scheduler.roster.eos_token_ids)
        raw = msgspec.msgpack.encode(plan)
        self.message_bytes.append(len(raw))
        self.flights.append(step)
        self._ranks.submit(msgspec.msgpack.decode(raw, type=StepPlan))
