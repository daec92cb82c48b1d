"""What a rank remembers between steps: every slot's tokens, length and blocks; no torch.

The host sends what changed (``engine.spec.steps.StepPlan``); this table turns it into the rows of
the step. A slot's tokens, told and sampled::

    position   0 .. num_computed-1 | .. start_len-1 | start_len ..
    told       in the KV cache     | token_ids      | nothing: the rank's own samples, one a step
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.spec.steps import Int32Array, SlotStart, StepPlan, int32, num_scored

Int64Array = npt.NDArray[np.int64]
NO_PLACES: Int64Array = np.empty(0, np.int64)
NO_IDS: Int32Array = np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """The rows of one step, in full: S rows with N new tokens, R of the rows sampled.

    ``number`` counts the steps of a table from 0. ``slots``, ``query_lens``, ``context_lens``
    i4[S]; ``block_tables`` i4[S, W], -1 beyond a row's blocks. ``token_ids`` i4[N] are 0 where
    the token is a placeholder: places ``placeholder_at`` i8[P] get the last token sampled in slots
    ``placeholder_slots`` i8[P]. The latest of these tokens comes from step ``newest_sample`` (-1:
    there are none). ``sample_rows`` i8[R] are sampled, in slots ``sample_slots`` i4[R], for the
    output positions ``positions`` i4[R]. Tokens ``scored_at`` i8[Q] of the N are followed in their
    prompts by ``scored_ids`` i4[Q], whose log probabilities are asked for with the
    ``num_prompt_logprobs`` best (-1: nobody asks). ``starts`` took their slots in this step.
    """

    number: int
    slots: Int32Array
    query_lens: Int32Array
    context_lens: Int32Array
    block_tables: Int32Array
    token_ids: Int32Array
    placeholder_at: Int64Array
    placeholder_slots: Int64Array
    newest_sample: int
    sample_rows: Int64Array
    sample_slots: Int32Array
    positions: Int32Array
    scored_at: Int64Array
    scored_ids: Int32Array
    num_prompt_logprobs: int
    starts: list[SlotStart]


class RankTable:
    """State of ``num_slots`` slots, each of at most ``max_blocks`` KV blocks."""

    def __init__(self, *, num_slots: int, max_blocks: int) -> None:
        self._num_computed = np.full(num_slots, -1, np.int32)
        self._start_len = np.zeros(num_slots, np.int32)
        self._prompt_len = np.zeros(num_slots, np.int32)
        self._num_blocks = np.zeros(num_slots, np.int64)
        self._blocks = np.full((num_slots, max_blocks), -1, np.int32)
        self._sampled_in = np.full(num_slots, -1, np.int64)
        self._known: list[Int32Array] = [np.empty(0, np.int32)] * num_slots
        self._known_from = np.zeros(num_slots, np.int32)
        self._num_prompt_logprobs = np.full(num_slots, -1, np.int32)
        self._num_steps = 0
        # The slots, as they were told, and the rows of the last step, where each row was one token
        # behind a sample of its own: the next step may be the same, one token on.
        self._decoded: tuple[bytes, StepRows] | None = None

    @property
    def num_slots(self) -> int:
        return len(self._num_computed)

    def apply(self, step: StepPlan) -> StepRows:
        """Take in what changed and advance by the step's tokens; returns the rows to run."""
        rows = self._next_token(step)
        if rows is None:
            rows = self._changed(step)
        self._num_computed[rows.slots] += rows.query_lens
        self._sampled_in[rows.sample_slots] = rows.number
        self._num_steps += 1
        self._decoded = (step.slots, rows) if _is_decode(rows) else None
        return rows

    def _next_token(self, step: StepPlan) -> StepRows | None:
        """The last step's rows one token on, if this step is just that; None if not. It takes a
        third of the time of :meth:`_rows`, which matters with one sequence.
        """
        if self._decoded is None or step.starts or step.grown_slots or step.query_lens:
            return None
        slots, last = self._decoded
        if step.slots != slots:
            return None
        return replace(
            last,
            number=self._num_steps,
            context_lens=last.context_lens + 1,
            newest_sample=last.number,
            positions=last.positions + 1,
            starts=[],
        )

    def _changed(self, step: StepPlan) -> StepRows:
        """The rows after what changed, before they advance."""
        for start in step.starts:
            self._start(start)
        if step.grown_slots:
            self._grow(int32(step.grown_slots), int32(step.grown_blocks))
        slots = int32(step.slots)
        query_lens = int32(step.query_lens) if step.query_lens else np.ones(len(slots), np.int32)
        self._check_rows(slots, query_lens)
        return self._rows(slots, query_lens, step.starts)

    def _start(self, start: SlotStart) -> None:
        slot, known, blocks = start.slot, int32(start.token_ids), int32(start.blocks)
        assert 0 <= slot < self.num_slots, f"slot {slot} is not below {self.num_slots}"
        assert len(known), f"slot {slot} starts without a token to compute"
        self._num_computed[slot] = self._known_from[slot] = start.num_computed
        self._start_len[slot] = start.num_computed + len(known)
        self._prompt_len[slot] = start.prompt_len
        self._known[slot] = known
        self._num_prompt_logprobs[slot] = start.sampling.num_prompt_logprobs
        self._blocks[slot, : self._num_blocks[slot]] = -1
        self._num_blocks[slot] = 0
        self._append(slot, blocks)

    def _append(self, slot: int, blocks: Int32Array) -> None:
        first = int(self._num_blocks[slot])
        end = first + len(blocks)
        self._check_width(slot, end)
        self._blocks[slot, first:end] = blocks
        self._num_blocks[slot] = end

    def _grow(self, slots: Int32Array, blocks: Int32Array) -> None:
        """Append one block per entry; a slot named several times gets them in that order."""
        assert len(slots) == len(blocks), f"{len(slots)} slots grow by {len(blocks)} blocks"
        self._check_range(slots)
        order = np.argsort(slots, kind="stable")
        grouped = slots[order]
        # A slot's n-th new block goes n places behind those it has. Entries are grouped by slot,
        # so n is an entry's place in the whole less that of its group's first entry. One indexed
        # write then does it for all slots; a loop would cost every rank time in every step.
        places = self._num_blocks[grouped] + np.arange(len(slots))
        places -= np.searchsorted(grouped, grouped)
        self._check_width(int(grouped[places.argmax()]), int(places.max()) + 1)
        self._blocks[grouped, places] = blocks[order]
        self._num_blocks += np.bincount(slots, minlength=self.num_slots)

    def _rows(self, slots: Int32Array, query_lens: Int32Array, starts: list[SlotStart]) -> StepRows:
        context_lens, start_lens = self._num_computed[slots], self._start_len[slots]
        ends = context_lens + query_lens
        # After its told tokens, a row goes on with its own last sample, which the host never sends.
        is_own = context_lens >= start_lens
        is_fine = ends <= np.maximum(start_lens, context_lens + 1)
        assert is_fine.all(), (
            f"slot {slots[~is_fine][0]}: {query_lens[~is_fine][0]} new tokens after "
            f"{context_lens[~is_fine][0]} reach beyond the {start_lens[~is_fine][0]} known ones"
        )
        # A row's first token stands behind the tokens of all rows before it.
        firsts = np.cumsum(query_lens, dtype=np.int64) - query_lens
        own_slots = slots[is_own].astype(np.int64)
        sampled = np.flatnonzero(ends >= start_lens)
        sample_slots = slots[sampled]
        # Columns beyond the fullest row would only be copied and gathered for nothing.
        width = int(self._num_blocks[slots].max())
        scored_at, scored_ids = self._scored(slots, query_lens, context_lens, firsts)
        return StepRows(
            number=self._num_steps,
            slots=slots,
            query_lens=query_lens,
            context_lens=context_lens,
            block_tables=self._blocks[:, :width].take(slots, axis=0),
            token_ids=self._token_ids(slots, query_lens, context_lens, firsts, is_own),
            placeholder_at=firsts[is_own],
            placeholder_slots=own_slots,
            newest_sample=int(self._sampled_in[own_slots].max(initial=-1)),
            sample_rows=sampled,
            sample_slots=sample_slots,
            positions=ends[sampled] - self._prompt_len[sample_slots],
            scored_at=scored_at,
            scored_ids=scored_ids,
            num_prompt_logprobs=int(self._num_prompt_logprobs[slots].max()),
            starts=starts,
        )

    def _scored(
        self,
        slots: Int32Array,
        query_lens: Int32Array,
        context_lens: Int32Array,
        firsts: Int64Array,
    ) -> tuple[Int64Array, Int32Array]:
        """Tokens of the step whose successors in their prompts are asked for, and those."""
        places, ids = [NO_PLACES], [NO_IDS]
        for row in np.flatnonzero(self._num_prompt_logprobs[slots] >= 0).tolist():
            slot, before = slots[row], int(context_lens[row])
            count = num_scored(before, int(query_lens[row]), int(self._prompt_len[slot]))
            begin = before + 1 - self._known_from[slot]
            places.append(np.arange(firsts[row], firsts[row] + count))
            ids.append(self._known[slot][begin : begin + count])
        return np.concatenate(places), np.concatenate(ids)

    def _token_ids(
        self,
        slots: Int32Array,
        query_lens: Int32Array,
        context_lens: Int32Array,
        firsts: Int64Array,
        is_own: npt.NDArray[np.bool_],
    ) -> Int32Array:
        ids = np.zeros(int(query_lens.sum()), np.int32)
        for row in np.flatnonzero(~is_own).tolist():
            slot, count, first = slots[row], query_lens[row], firsts[row]
            begin = context_lens[row] - self._known_from[slot]
            ids[first : first + count] = self._known[slot][begin : begin + count]
        return ids

    def _check_rows(self, slots: Int32Array, query_lens: Int32Array) -> None:
        assert len(slots) == len(query_lens), f"{len(slots)} rows, {len(query_lens)} lengths"
        assert len(slots), "a step has rows"
        self._check_range(slots)
        assert query_lens.min() >= 1, "every row has new tokens"
        assert (np.bincount(slots) <= 1).all(), f"a slot has two rows: {sorted(slots.tolist())}"
        is_idle = self._num_computed[slots] < 0
        assert not is_idle.any(), f"slot {slots[is_idle][0]} was never started"
        is_bare = self._num_blocks[slots] == 0
        assert not is_bare.any(), f"slot {slots[is_bare][0]} has no block"

    def _check_range(self, slots: Int32Array) -> None:
        low, high = int(slots.min()), int(slots.max())
        is_fine = low >= 0 and high < self.num_slots
        assert is_fine, f"slots {low}..{high} are not in 0..{self.num_slots - 1}"

    def _check_width(self, slot: int, num_blocks: int) -> None:
        most = self._blocks.shape[1]
        assert num_blocks <= most, f"slot {slot} has {num_blocks} blocks; {most} are its most"


def _is_decode(rows: StepRows) -> bool:
    """Whether each row was one token behind a sample of its own, and nobody asks about its
    prompt."""
    num_rows = len(rows.slots)
    is_own = len(rows.placeholder_at) == num_rows == len(rows.token_ids)
    return is_own and rows.num_prompt_logprobs < 0
