"""Drives a replica step by step without a scheduler: chunked prefill, then decodes together.

Each sequence takes a slot once; from then on ranks are told of new blocks only, and embed the
tokens they sampled themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.spec.modes import BASE, Mode
from engine.spec.steps import SlotSampling, SlotStart, StepPlan, StepResult, StepShape, int32

Logits = npt.NDArray[np.float64]
ChooseMode = Callable[[int], Mode]


class Replica(Protocol):
    """What runs the steps, first in, first out."""

    def submit(self, step: StepPlan) -> None: ...

    def collect(self) -> StepResult: ...


@dataclass(kw_only=True, eq=False)
class DrivenSequence:
    """One sequence: its tokens so far, the blocks it has, and the logits of its output.

    ``num_tokens`` counts the tokens that steps in flight will bring, too; ``cached`` those
    computed once these are done. ``slot`` is None until its next step starts it.
    """

    tokens: list[int]
    prompt_len: int
    sampling: SlotSampling
    num_tokens: int
    cached: int = 0
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    logits: list[Logits] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.prompt_len


class StepDriver:
    """Runs sequences to ``max_tokens`` each. ``budget`` bounds the tokens of a step.

    ``num_ahead`` steps are submitted before the oldest one's result is read. With ``restarts``,
    sequences now and then lose slot and blocks and are computed anew (drawn from that seed).
    """

    def __init__(
        self,
        replica: Replica,
        *,
        vocab_size: int,
        block_size: int = 4,
        num_blocks: int = 64,
        num_slots: int = 8,
        budget: int = 64,
        num_ahead: int = 0,
        restarts: int | None = None,
        mode: ChooseMode = lambda step_id: BASE,
    ) -> None:
        self._replica = replica
        self._vocab_size = vocab_size
        self._block_size = block_size
        # Handed out from anywhere, so that tables are neither ascending nor adjacent.
        self._free = list(range(num_blocks))
        self._free_slots = list(range(num_slots))
        self._budget = budget
        self._num_ahead = num_ahead
        self._restarts = None if restarts is None else Random(restarts)
        self._mode = mode
        self._in_flight: deque[list[DrivenSequence]] = deque()
        self.modes: list[Mode] = []
        self.step_sizes: list[int] = []

    def run(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, **sampling: float
    ) -> list[DrivenSequence]:
        sequences = [
            DrivenSequence(
                tokens=list(prompt),
                prompt_len=len(prompt),
                num_tokens=len(prompt),
                sampling=SlotSampling(seed=i + 1, **sampling),
            )
            for i, prompt in enumerate(prompts)
        ]
        while running := [s for s in sequences if s.num_output < max_tokens]:
            self._maybe_restart(running)
            self._submit(running)
            if len(self._in_flight) > self._num_ahead:
                self._collect()
        while self._in_flight:
            self._collect()
        for sequence in sequences:
            self._release(sequence)
        return sequences

    def _submit(self, running: list[DrivenSequence]) -> None:
        rows: list[tuple[DrivenSequence, int]] = []
        left = self._budget
        for sequence in running:
            length = min(sequence.num_tokens - sequence.cached, left)
            if length:
                rows.append((sequence, length))
                left -= length
        step = self._plan(rows)
        sampled = []
        for sequence, length in rows:
            sequence.cached += length
            if sequence.cached == sequence.num_tokens:
                sequence.num_tokens += 1
                sampled.append(sequence)
        self._replica.submit(step)
        self._in_flight.append(sampled)

    def _collect(self) -> None:
        result, sampled = self._replica.collect(), self._in_flight.popleft()
        ids = int32(result.token_ids).tolist()
        logits = np.frombuffer(result.logits or b"").reshape(len(sampled), self._vocab_size)
        for sequence, token, row in zip(sampled, ids, logits, strict=True):
            sequence.tokens.append(token)
            sequence.logits.append(row)

    def _plan(self, rows: list[tuple[DrivenSequence, int]]) -> StepPlan:
        step_id = len(self.modes)
        mode = self._mode(step_id)
        self.modes.append(mode)
        self.step_sizes.append(sum(length for _, length in rows))
        starts, grown = [], []
        for sequence, length in rows:
            new = self._new_blocks(sequence, sequence.cached + length)
            if sequence.slot is None:
                starts.append(self._start(sequence, new))
            else:
                grown += [(sequence.slot, block) for block in new]
        grown_array = np.array(grown, np.int32).reshape(-1, 2)
        lens = [length for _, length in rows]
        sampled = [s for s, length in rows if s.cached + length == s.num_tokens]
        return StepPlan(
            step_id=step_id,
            shape=StepShape(mode=mode, num_seqs=len(rows), num_sampled=len(sampled)),
            starts=starts,
            grown_slots=grown_array[:, 0].tobytes(),
            grown_blocks=grown_array[:, 1].tobytes(),
            slots=np.array([s.slot for s, _ in rows], np.int32).tobytes(),
            query_lens=b"" if set(lens) == {1} else np.array(lens, np.int32).tobytes(),
            return_logits=True,
        )

    def _start(self, sequence: DrivenSequence, blocks: list[int]) -> SlotStart:
        sequence.slot = self._free_slots.pop()
        return SlotStart(
            slot=sequence.slot,
            prompt_len=sequence.prompt_len,
            token_ids=np.array(sequence.tokens, np.int32).tobytes(),
            blocks=np.array(blocks, np.int32).tobytes(),
            sampling=sequence.sampling,
        )

    def _new_blocks(self, sequence: DrivenSequence, num_tokens: int) -> list[int]:
        new = []
        for _ in range(-(-num_tokens // self._block_size) - len(sequence.blocks)):
            new.append(self._free.pop((7 * len(self.modes)) % len(self._free)))
            sequence.blocks.append(new[-1])
        return new

    def _maybe_restart(self, running: list[DrivenSequence]) -> None:
        if self._restarts is None or self._restarts.random() > 0.3:
            return
        sequence = self._restarts.choice(running)
        if len(sequence.tokens) == sequence.num_tokens:  # nothing of it is in flight
            self._release(sequence)

    def _release(self, sequence: DrivenSequence) -> None:
        self._free += sequence.blocks
        if sequence.slot is not None:
            self._free_slots.append(sequence.slot)
        sequence.blocks, sequence.slot, sequence.cached = [], None, 0
