"""Sequences: requests in progress. What changes at every step lives in arrays, one row each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.scheduler.prefix import PrefixChain
from engine.spec.request import FinishReason, Request
from engine.spec.steps import Int32Array

NO_SLOT = -1


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in progress.

    While it runs, its lengths are in the :class:`SequenceTable` row ``slot``; while it waits
    (``slot`` = -1), ``num_tokens`` here says how far it had come. ``output_ids`` holds the
    generated ids wherever content is known (not in simulation). If prefixes are reused, ``chain``
    has the digests of its full blocks; blocks of a sequence that ``has_failed`` are never found by
    others.
    """

    request: Request
    num_tokens: int
    output_ids: list[int] = field(default_factory=list)
    slot: int = NO_SLOT
    num_preemptions: int = 0
    arrival_number: int = -1
    chain: PrefixChain | None = None
    num_published: int = 0
    has_failed: bool = False

    @classmethod
    def of(cls, request: Request) -> Sequence:
        return cls(request=request, num_tokens=len(request.prompt_ids))

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_ids(self) -> int:
        """Tokens whose ids are known; in simulation those of the prompt only."""
        return self.prompt_len + len(self.output_ids)

    def token_slice(self, start: int, stop: int) -> list[int]:
        """Known token ids ``start..stop-1`` of prompt and output."""
        prompt = self.request.prompt_ids
        if stop <= len(prompt):
            return list(prompt[start:stop])
        outputs = self.output_ids[max(0, start - len(prompt)) : stop - len(prompt)]
        return [*prompt[start:], *outputs]

    def finish_reason(
        self, token_id: int, num_tokens: int, eos: frozenset[int]
    ) -> FinishReason | None:
        """Why the sequence ends with ``token_id`` as its ``num_tokens``-th token, if it does."""
        sampling = self.request.sampling
        if num_tokens - self.prompt_len >= sampling.min_tokens:
            is_eos = token_id in eos and not sampling.ignore_eos
            if is_eos or token_id in sampling.stop_token_ids:
                return FinishReason.STOP
        return FinishReason.LENGTH if num_tokens >= self.request.max_len else None


class SequenceTable:
    """Arrays over the slots of running sequences (C slots, W blocks per sequence at most).

    ``num_tokens`` and ``num_computed`` run ahead: they count what the steps in flight will have
    done, on the assumption that no sequence stops (arXiv 2606.01927, "optimistic"). ``num_known``
    counts tokens whose steps are committed. ``in_flight`` counts the steps in flight that hold
    the row; a row that ``is_ended`` only waits for those. ``overhang`` is ``num_computed``
    minus the tokens that the row's blocks hold: 0 = full, never above.

    One row through three steps, each scheduled (``+``) while the one before it runs, and each
    committed (``-``) when it has ended; a prompt of 6 tokens in chunks of at most 4, blocks of 4.
    ``#`` is counted as computed, ``.`` is not; in parentheses are tokens that nobody knows yet::

                 tokens      num_known  num_tokens  num_computed  in_flight  num_blocks
        + step 0  #### ..        6          6            4            1          1
        + step 1  #### ##(.)     6          7            6            2          2
        - step 0  #### ##(.)     6          7            6            1          2
        + step 2  #### ##(#.)    6          8            7            2          2
        - step 1  #### ###(.)    7          8            7            1          2
        - step 2  #### ###.      8          8            7            0          2

    Step 0 is a chunk, step 1 reaches the last token and so brings the next one, and step 2, which
    has only that one left to compute, is a decode. It is scheduled before anybody here knows the
    token: ranks sample it in step 1 and take it from there.

    The four counts that a decode step moves by one are rows of ``counts`` i4[4, C], so that one
    operation moves them all.
    """

    def __init__(self, *, num_slots: int, max_blocks: int) -> None:
        self.num_slots = num_slots
        self.counts: Int32Array = np.zeros((4, num_slots), np.int32)
        self.num_computed: Int32Array = self.counts[0]
        self.overhang: Int32Array = self.counts[1]
        self.num_tokens: Int32Array = self.counts[2]
        self.num_known: Int32Array = self.counts[3]
        self.max_len: Int32Array = np.zeros(num_slots, np.int32)
        self.num_blocks: Int32Array = np.zeros(num_slots, np.int32)
        # Places beyond ``num_blocks`` mean nothing. Zeros are memory that is never touched: filling
        # 33 MB, for 1,024 slots of 131,072 tokens, took longer than simulating 100 requests.
        self.blocks: Int32Array = np.zeros((num_slots, max_blocks), np.int32)
        self.in_flight: npt.NDArray[np.int8] = np.zeros(num_slots, np.int8)
        self.is_ended: npt.NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.sequences: list[Sequence | None] = [None] * num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def place(self, sequence: Sequence, cached_blocks: Int32Array, num_cached: int) -> int:
        """Give a waiting sequence a row; ``num_cached`` of its tokens are in the KV cache."""
        slot = self._free_slots.pop()
        sequence.slot = slot
        self.sequences[slot] = sequence
        self.num_tokens[slot] = self.num_known[slot] = sequence.num_tokens
        self.num_computed[slot] = num_cached
        self.max_len[slot] = sequence.request.max_len
        if len(cached_blocks):
            self.blocks[slot, : len(cached_blocks)] = cached_blocks
            self.num_blocks[slot] = len(cached_blocks)
        return slot

    def remove(self, sequence: Sequence) -> Int32Array:
        """Take a sequence off its row; returns the KV blocks it held."""
        slot = sequence.slot
        held = self.held_blocks(slot).copy()
        sequence.num_tokens = int(self.num_known[slot])
        sequence.slot = NO_SLOT
        self.num_blocks[slot] = 0
        self.overhang[slot] = 0
        self.in_flight[slot] = 0
        self.is_ended[slot] = False
        self.sequences[slot] = None
        self._free_slots.append(slot)
        return held

    def list_sequences(self, slots: npt.NDArray[np.intp]) -> list[Sequence]:
        """The sequences in these rows."""
        held = self.sequences
        return [s for slot in slots.tolist() if (s := held[slot]) is not None]

    def held_blocks(self, slot: int) -> Int32Array:
        """View of the KV blocks of one row."""
        return self.blocks[slot, : self.num_blocks[slot]]
