"""The rank's table gives every step the rows that the sequences' whole history asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.steps import SlotStart, StepPlan, StepShape
from engine.wire.rank_table import RankTable, StepRows

NUM_SLOTS = 5
MAX_BLOCKS = 12
BLOCK_SIZE = 3


@dataclass
class Held:
    """A slot as a plain list of tokens; None stands for a token the rank sampled itself."""

    tokens: list[int | None]
    prompt_len: int
    blocks: list[int]
    num_computed: int
    last_sampled: int = -1


def i4(values: Sequence[int]) -> bytes:
    return np.array(values, np.int32).tobytes()


def plan(
    *,
    starts: Sequence[SlotStart] = (),
    grown: Sequence[tuple[int, int]] = (),
    slots: Sequence[int],
    lens: Sequence[int] = (),
) -> StepPlan:
    return StepPlan(
        step_id=0,
        shape=StepShape(),
        starts=list(starts),
        grown_slots=i4([slot for slot, _ in grown]),
        grown_blocks=i4([block for _, block in grown]),
        slots=i4(slots),
        query_lens=i4(lens),
    )


def start(slot: int, num_tokens: int, *, blocks: int = 4, cached: int = 0) -> SlotStart:
    return SlotStart(
        slot=slot,
        prompt_len=cached + num_tokens,
        token_ids=i4(range(100, 100 + num_tokens)),
        num_computed=cached,
        blocks=i4(range(blocks)),
    )


def table() -> RankTable:
    return RankTable(num_slots=NUM_SLOTS, max_blocks=MAX_BLOCKS)


def check(rows: StepRows, number: int, held: dict[int, Held], run: list[tuple[int, int]]) -> None:
    """``rows`` say what the lists say, row by row."""
    ids: list[int] = []
    expected_at, expected_slots, sampled, positions, newest = [], [], [], [], -1
    for row, (slot, length) in enumerate(run):
        one = held[slot]
        end = one.num_computed + length
        for token in one.tokens[one.num_computed : end]:
            if token is None:
                expected_at.append(len(ids))
                expected_slots.append(slot)
                newest = max(newest, one.last_sampled)
            ids.append(token or 0)
        if end == len(one.tokens):
            sampled.append(row)
            positions.append(end - one.prompt_len)
        blocks = rows.block_tables[row]
        assert blocks[: len(one.blocks)].tolist() == one.blocks
        assert (blocks[len(one.blocks) :] == -1).all()
    assert rows.number == number
    assert rows.slots.tolist() == [slot for slot, _ in run]
    assert rows.query_lens.tolist() == [length for _, length in run]
    assert rows.context_lens.tolist() == [held[slot].num_computed for slot, _ in run]
    assert rows.token_ids.tolist() == ids
    assert rows.placeholder_at.tolist() == expected_at
    assert rows.placeholder_slots.tolist() == expected_slots
    assert rows.newest_sample == newest
    assert rows.sample_rows.tolist() == sampled
    assert rows.sample_slots.tolist() == [run[row][0] for row in sampled]
    assert rows.positions.tolist() == positions


def draw_start(data: st.DataObject, slot: int) -> tuple[SlotStart, Held]:
    """Any start: a new prompt, one found in part in the cache, or one with its output so far."""
    num_cached = data.draw(st.integers(0, 4))
    known = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=9))
    prompt_len = data.draw(st.integers(1, num_cached + len(known)))
    blocks = data.draw(st.lists(st.integers(0, 50), max_size=3))
    message = SlotStart(
        slot=slot,
        prompt_len=prompt_len,
        token_ids=i4(known),
        num_computed=num_cached,
        blocks=i4(blocks),
    )
    tokens: list[int | None] = [*[0] * num_cached, *known]
    held = Held(tokens=tokens, prompt_len=prompt_len, blocks=blocks, num_computed=num_cached)
    return message, held


def draw_run(data: st.DataObject, held: dict[int, Held]) -> list[tuple[int, int]]:
    """Some of the slots in any order, each with as many new tokens as it may have."""
    order = data.draw(st.permutations(sorted(held)))
    run = []
    for slot in order[: data.draw(st.integers(0, len(order)))]:
        one = held[slot]
        most = min(len(one.tokens), MAX_BLOCKS * BLOCK_SIZE) - one.num_computed
        if most:
            run.append((slot, data.draw(st.integers(1, most))))
    return run


def draw_growth(
    data: st.DataObject, held: dict[int, Held], run: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The blocks that ``run`` needs, the slots mixed."""
    slots = [
        slot
        for slot, length in run
        for _ in range(
            -(-(held[slot].num_computed + length) // BLOCK_SIZE) - len(held[slot].blocks)
        )
    ]
    return [(slot, data.draw(st.integers(0, 50))) for slot in data.draw(st.permutations(slots))]


@given(data=st.data(), num_steps=st.integers(1, 12))
def test_any_starts_growth_chunks_and_decodes_give_the_rows_of_plain_lists(
    data: st.DataObject, num_steps: int
) -> None:
    rank, held, number = table(), dict[int, Held](), 0
    for _ in range(num_steps):
        drawn = {
            slot: draw_start(data, slot)
            for slot in data.draw(st.lists(st.integers(0, NUM_SLOTS - 1), unique=True))
        }
        next_held = held | {slot: one for slot, (_, one) in drawn.items()}
        run = draw_run(data, next_held)
        if not run:
            continue
        held = next_held
        grown = draw_growth(data, held, run)
        for slot, block in grown:
            held[slot].blocks.append(block)
        lens = [length for _, length in run]
        step = plan(
            starts=[message for message, _ in drawn.values()],
            grown=grown,
            slots=[slot for slot, _ in run],
            lens=[] if set(lens) == {1} else lens,
        )
        check(rank.apply(step), number, held, run)
        for slot, length in run:
            one = held[slot]
            one.num_computed += length
            if one.num_computed == len(one.tokens):
                one.tokens.append(None)
                one.last_sampled = number
        number += 1


def test_a_prompt_in_chunks_is_sampled_once_and_goes_on_with_its_own_tokens() -> None:
    rank = table()
    first = rank.apply(plan(starts=[start(2, 5)], slots=[2], lens=[3]))
    assert first.token_ids.tolist() == [100, 101, 102]
    assert first.sample_rows.tolist() == []
    second = rank.apply(plan(slots=[2], lens=[2]))
    assert second.token_ids.tolist() == [103, 104]
    assert (second.sample_slots.tolist(), second.positions.tolist()) == ([2], [0])
    third = rank.apply(plan(slots=[2]))
    assert (third.placeholder_at.tolist(), third.placeholder_slots.tolist()) == ([0], [2])
    assert (third.newest_sample, third.positions.tolist()) == (1, [1])


def test_rows_of_a_step_do_not_change_with_the_steps_after_it() -> None:
    rank = table()
    first = rank.apply(plan(starts=[start(0, 2)], slots=[0], lens=[2]))
    blocks = first.block_tables.tolist()
    rank.apply(plan(starts=[start(0, 6, blocks=2)], slots=[0], lens=[6]))
    assert first.block_tables.tolist() == blocks
    assert first.context_lens.tolist() == [0]


def test_a_slot_started_anew_forgets_the_blocks_it_had() -> None:
    rank = table()
    rank.apply(plan(starts=[start(0, 9, blocks=5), start(1, 2)], slots=[0, 1], lens=[9, 2]))
    rows = rank.apply(plan(starts=[start(0, 2, blocks=1)], slots=[0, 1], lens=[2, 1]))
    assert rows.block_tables.tolist() == [[0, -1, -1, -1], [0, 1, 2, 3]]


def test_a_row_may_not_have_more_new_tokens_than_are_known() -> None:
    rank = table()
    with pytest.raises(AssertionError, match="slot 1: 4 new tokens after 0 reach beyond the 3"):
        rank.apply(plan(starts=[start(1, 3)], slots=[1], lens=[4]))
    rank.apply(plan(starts=[start(1, 3)], slots=[1], lens=[3]))
    with pytest.raises(AssertionError, match="slot 1: 2 new tokens after 3"):
        rank.apply(plan(slots=[1], lens=[2]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (plan(starts=[start(NUM_SLOTS, 1)], slots=[0]), "slot 5 is not below 5"),
        (plan(slots=[7]), r"slots 7..7 are not in 0..4"),
        (plan(grown=[(-1, 3)], slots=[0]), r"slots -1..-1 are not in 0..4"),
        (plan(slots=[0]), "slot 0 was never started"),
        (plan(starts=[start(0, 1, blocks=0)], slots=[0]), "slot 0 has no block"),
        (plan(starts=[start(0, 0)], slots=[0]), "slot 0 starts without a token"),
        (plan(starts=[start(0, 1, blocks=13)], slots=[0]), "slot 0 has 13 blocks; 12 are its most"),
        (plan(starts=[start(0, 1)], slots=[0, 0]), "a slot has two rows"),
        (plan(starts=[start(0, 1)], slots=[]), "a step has rows"),
        (plan(starts=[start(0, 1)], slots=[0], lens=[0]), "every row has new tokens"),
    ],
)
def test_messages_that_cannot_be_right_are_refused_with_the_slot(
    step: StepPlan, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        table().apply(step)
