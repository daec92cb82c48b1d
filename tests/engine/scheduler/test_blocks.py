"""The block pool: no block is lost or given twice, and a shared block holds what was asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.scheduler.blocks import BlockPool
from engine.spec.steps import Int32Array

NUM_BLOCKS = 8


def digests_of(tokens: str) -> list[bytes]:
    """One digest per token, as if a block held one token: the beginning that ends there."""
    return [tokens[: end + 1].encode() for end in range(len(tokens))]


def held_with(pool: BlockPool, tokens: str) -> Int32Array:
    """Blocks of a sequence that computed ``tokens`` and published them."""
    blocks = pool.allocate(len(tokens))
    pool.publish(blocks, digests_of(tokens))
    return blocks


class PoolAgainstLists(RuleBasedStateMachine):
    """A pool beside one made of plain lists, under sequences that come, share and go."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, keeps_prefixes=True)
        self.plain = list(range(NUM_BLOCKS))  # next one first
        self.unheld: list[int] = []  # next to be evicted first
        self.known: dict[bytes, int] = {}
        self.written: dict[int, bytes] = {}  # what the memory really holds
        self.held: list[Int32Array] = []

    def take_one(self) -> int:
        if self.plain:
            return self.plain.pop(0)
        block = self.unheld.pop(0)
        self.known = {digest: b for digest, b in self.known.items() if b != block}
        return block

    @rule(target=holders, tokens=st.text("ab", min_size=1, max_size=NUM_BLOCKS), hits=st.booleans())
    def start(self, tokens: str, hits: bool) -> tuple[str, list[int]]:
        digests = digests_of(tokens)
        found = self.pool.find_prefix(digests if hits else [])
        if hits:
            misses = [i for i, digest in enumerate(digests) if digest not in self.known]
            assert len(found) == (misses[0] if misses else len(digests)), "not the longest chain"
        for block, digest in zip(found.tolist(), digests, strict=False):
            assert self.written[block] == digest, "a shared block holds something else"
        num_new = len(tokens) - len(found)
        if num_new > self.pool.free_after_sharing(found):
            return "", []
        self.pool.share(found)
        self.unheld = [block for block in self.unheld if block not in found]
        assert self.pool.can_allocate(num_new), "admission counted blocks that are not free"
        taken = self.pool.allocate(num_new)
        assert taken.tolist() == [self.take_one() for _ in range(num_new)]
        blocks = [*found.tolist(), *taken.tolist()]
        self.written.update(zip(blocks, digests, strict=True))
        self.held.append(np.array(blocks, np.int32))
        return tokens, blocks

    @rule(holder=holders, is_array=st.booleans())
    def publish(self, holder: tuple[str, list[int]], is_array: bool) -> None:
        tokens, blocks = holder
        if not any(np.array_equal(blocks, held) for held in self.held):
            return
        self.pool.publish(np.array(blocks, np.int32) if is_array else blocks, digests_of(tokens))
        for block, digest in zip(blocks, digests_of(tokens), strict=True):
            self.known.setdefault(digest, block)

    @rule(holder=consumes(holders))
    def end(self, holder: tuple[str, list[int]]) -> None:
        _, blocks = holder
        nth = next((i for i, held in enumerate(self.held) if held.tolist() == blocks), None)
        if nth is None:
            return
        self.pool.free(self.held.pop(nth))
        still_held = {block for held in self.held for block in held.tolist()}
        released = [block for block in blocks if block not in still_held]
        self.unheld += [b for b in reversed(released) if b in self.known.values()]
        self.plain = [b for b in released if b not in self.known.values()] + self.plain

    @rule()
    def forget(self) -> None:
        self.pool.forget_prefixes()
        self.plain = self.unheld + self.plain
        self.unheld, self.known = [], {}

    @invariant()
    def books_balance(self) -> None:
        pool = self.pool
        pool.check_integrity(self.held)
        assert pool.num_free == len(self.plain) + len(self.unheld)
        assert pool.num_cached == len(self.known)
        held = {block for blocks in self.held for block in blocks.tolist()}
        assert pool.usage == pytest.approx(len(held) / NUM_BLOCKS)


PoolAgainstLists.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestAPoolDoesWhatOneOfPlainListsDoes = PoolAgainstLists.TestCase


@pytest.mark.parametrize("keeps_prefixes", [False, True])
def test_blocks_without_known_content_come_back_last_freed_first(keeps_prefixes: bool) -> None:
    pool = BlockPool(8, keeps_prefixes=keeps_prefixes)
    first, second = pool.allocate(3), pool.allocate(2)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [3, 4])
    pool.free(first)
    assert pool.allocate(4).tolist() == [0, 1, 2, 5]
    assert pool.num_free == 2
    pool.check_integrity([np.array([0, 1, 2, 5], np.int32), second])


def test_content_outlives_its_holder_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    pool.free(held_with(pool, "abc"))
    assert (pool.num_free, pool.num_cached, pool.usage) == (4, 3, 0.0)
    assert len(pool.find_prefix(digests_of("abx"))) == 2
    assert pool.allocate(1).tolist() == [3], "a cached block was taken before a plain one"
    pool.allocate(1)
    assert len(pool.find_prefix(digests_of("abc"))) == 2, "the end of the chain goes first"
    pool.allocate(2)
    assert pool.num_cached == 0


def test_the_least_recently_used_content_is_evicted_first() -> None:
    pool = BlockPool(3, keeps_prefixes=True)
    for tokens in ("a", "b", "c"):
        pool.free(held_with(pool, tokens))
    again = pool.find_prefix(digests_of("a"))
    pool.share(again)
    pool.free(again)
    pool.allocate(2)
    assert [len(pool.find_prefix(digests_of(t))) for t in "abc"] == [1, 0, 0]


def test_a_shared_block_stays_until_its_last_holder_leaves() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    first = held_with(pool, "ab")
    shared = pool.find_prefix(digests_of("ab"))
    assert pool.free_after_sharing(shared) == pool.num_free == 2, "held blocks are not free"
    pool.share(shared)
    pool.check_integrity([first, shared])
    pool.free(first)
    assert pool.num_free == 2
    pool.free(shared)
    assert pool.num_free == 4
    assert pool.free_after_sharing(shared) == 2


def test_the_copy_of_known_content_is_not_found_and_returns_as_a_plain_block() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    first, copy = held_with(pool, "a"), held_with(pool, "a")
    assert pool.find_prefix(digests_of("a")).tolist() == first.tolist()
    pool.free(first)
    pool.free(copy)
    assert pool.num_cached == 1
    assert pool.allocate(1).tolist() == copy.tolist()


def test_the_end_of_a_chain_is_not_found_while_its_beginning_is_gone() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    first, copy = held_with(pool, "a"), held_with(pool, "ab")
    pool.free(first)
    pool.allocate(2)
    assert not len(pool.find_prefix(digests_of("ab")))
    pool.publish(copy, digests_of("ab"))
    assert pool.find_prefix(digests_of("ab")).tolist() == copy.tolist()


def test_after_the_ranks_lost_their_memory_nothing_is_found_and_holders_keep_their_blocks() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    held = held_with(pool, "ab")
    pool.free(held_with(pool, "x"))
    pool.forget_prefixes()
    assert pool.num_cached == 0
    assert not len(pool.find_prefix(digests_of("ab")))
    pool.check_integrity([held])
    pool.publish(held, digests_of("ab"))
    assert len(pool.find_prefix(digests_of("ab"))) == 2


def test_a_pool_that_keeps_no_prefixes_finds_none() -> None:
    pool = BlockPool(4)
    held = held_with(pool, "ab")
    nothing = pool.find_prefix(digests_of("ab"))
    assert not len(nothing)
    assert pool.free_after_sharing(nothing) == pool.num_free
    pool.share(nothing)
    pool.free(held)
    assert (pool.num_free, pool.num_cached) == (4, 0)


@pytest.mark.parametrize("keeps_prefixes", [False, True])
def test_blocks_that_are_lost_held_twice_or_unknown_are_noticed(keeps_prefixes: bool) -> None:
    pool = BlockPool(4, keeps_prefixes=keeps_prefixes)
    held = pool.allocate(2)
    pool.check_integrity([held])
    with pytest.raises(AssertionError, match=r"blocks lost.*\[0, 1\]"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match=r"references differ.*\[0, 1\]"):
        pool.check_integrity([held, held])
    with pytest.raises(AssertionError, match="beyond the pool"):
        pool.check_integrity([np.array([0, 1, 4], np.int32)])


def test_misuse_of_blocks_that_nobody_holds_is_refused() -> None:
    pool = BlockPool(4, keeps_prefixes=True)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="nobody holds is freed"):
        pool.free(blocks)
    with pytest.raises(AssertionError, match="published but not held"):
        pool.publish(blocks, digests_of("a"))
    with pytest.raises(AssertionError, match="holds nothing"):
        pool.share(blocks)
    with pytest.raises(AssertionError, match="5 blocks asked, 4 free"):
        pool.allocate(5)
    pool.check_integrity([])
