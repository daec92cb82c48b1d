"""Paged KV memory: keeps account of which blocks are free and which hold a known beginning.

With prefixes kept, a full block that nobody holds any more stays *cached* under the digest of
its content (:mod:`engine.scheduler.prefix`) until its memory is needed; a later sequence with the
same beginning shares it. The KV layout is the same in every mode, so hits cross mode changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from engine.spec.steps import Int32Array


class BlockPool:
    """Fixed blocks of KV memory, handed out last-freed first, cached ones last.

    Returned blocks are in one array used as a stack, so that a whole step's blocks come in one
    slice. Below them, in effect, lie the *fresh* ones, which nobody has held yet. A block is plain
    (on the stack or fresh), cached (a digest and no holder) or held by ``references`` sequences;
    :attr:`num_free` counts the first two. Memory is touched only for blocks in use: a simulated
    device may have millions.
    """

    def __init__(self, num_blocks: int, *, keeps_prefixes: bool = False) -> None:
        assert num_blocks >= 1, f"{num_blocks} KV blocks"
        self.num_blocks = num_blocks
        self.keeps_prefixes = keeps_prefixes
        self._stack: Int32Array = np.empty(num_blocks, np.int32)
        self._num_stacked = 0
        self._first_fresh = 0  # it and all above
        # Without prefixes every held block has one holder, so nothing is counted.
        self._references: Int32Array = np.zeros(num_blocks if keeps_prefixes else 0, np.int32)
        self._unheld: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    # -- questions ---------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return self._num_stacked + self.num_blocks - self._first_fresh + len(self._unheld)

    @property
    def num_cached(self) -> int:
        """Blocks that a later sequence could share, held ones included."""
        return len(self._digest_of)

    @property
    def usage(self) -> float:
        """Share of blocks that somebody holds, 0..1."""
        return 1.0 - self.num_free / self.num_blocks

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_free

    def find_prefix(self, digests: Sequence[bytes]) -> Int32Array:
        """Blocks i4[k] of the longest known chain from the start of ``digests``.

        They are the caller's only after :meth:`share`; an :meth:`allocate` may take them away.
        """
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return np.array(found, np.int32)

    def free_after_sharing(self, blocks: Int32Array) -> int:
        """What :attr:`num_free` would be after :meth:`share`: cached blocks count until then."""
        if not len(blocks):
            return self.num_free
        return self.num_free - int(np.count_nonzero(self._references[blocks] == 0))

    # -- commands ----------------------------------------------------------------------------

    def allocate(self, count: int) -> Int32Array:
        """Take ``count`` blocks; the caller has asked :meth:`can_allocate`.

        Plain blocks go first. Then cached ones go, least recently used first; their content is
        forgotten.
        """
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        top = self._num_stacked
        self._num_stacked = max(top - count, 0)
        # Top of the stack first; a copy, because the stack is written over later.
        taken = self._stack[self._num_stacked : top][::-1].copy()
        if count > top:
            taken = np.concatenate([taken, self._take_fresh(count - top)])
        if self.keeps_prefixes:
            if count > len(taken):
                taken = np.concatenate([taken, self._evict(count - len(taken))])
            self._references[taken] = 1
        return taken

    def share(self, blocks: Int32Array) -> None:
        """Hold blocks of :meth:`find_prefix` once more each."""
        if not len(blocks):
            return
        references = self._references
        for block in blocks[references[blocks] == 0].tolist():
            assert block in self._unheld, f"block {block} is free and holds nothing"
            del self._unheld[block]
        references[blocks] += 1

    def publish(self, blocks: Sequence[int] | Int32Array, digests: Sequence[bytes]) -> None:
        """Make held, full blocks findable by the digests of what they hold.

        A known digest keeps its first block; the copy stays private to its holder. Does nothing if
        prefixes are not kept.
        """
        if not self.keeps_prefixes:
            return
        numbers = blocks.tolist() if isinstance(blocks, np.ndarray) else blocks
        for block, digest in zip(numbers, digests, strict=True):
            if digest in self._block_of:
                continue
            assert self._references[block] > 0, f"block {block} is published but not held"
            assert block not in self._digest_of, f"the content of block {block} changed"
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def free(self, blocks: Int32Array) -> None:
        """Drop one holder of each block (each named once).

        Blocks that lose their last holder stay cached if they have a digest. The others go back
        to the stack, so that the first of them is handed out again first.
        """
        if not self.keeps_prefixes:
            self._push(blocks)
            return
        left = self._references[blocks] - np.int32(1)
        assert left.min(initial=0) >= 0, "a block that nobody holds is freed"
        self._references[blocks] = left
        released = blocks[left == 0].tolist()
        digest_of = self._digest_of
        self._push(np.array([b for b in released if b not in digest_of], np.int32))
        # The end of a chain is useless without its beginning, so it must be evicted earlier.
        for block in reversed(released):
            if block in digest_of:
                self._unheld[block] = None

    def forget_prefixes(self) -> None:
        """Forget all content, for example because the ranks have lost it; holders keep their
        blocks."""
        unheld = np.fromiter(self._unheld, np.int32, len(self._unheld))
        self._unheld.clear()
        self._digest_of.clear()
        self._block_of.clear()
        self._push(unheld)

    def check_integrity(self, held: Iterable[Int32Array]) -> None:
        """Assert that blocks and references balance: ``held`` has the blocks of each holder."""
        fresh = np.arange(self._first_fresh, self.num_blocks, dtype=np.int32)
        plain = np.concatenate([self._stack[: self._num_stacked], fresh])
        unheld = np.fromiter(self._unheld, np.int32, len(self._unheld))
        counts = np.bincount(np.concatenate([plain[:0], *held]), minlength=self.num_blocks)
        assert len(counts) == self.num_blocks, "a block id beyond the pool is in use"
        places = np.concatenate([plain, unheld, np.flatnonzero(counts)])
        wrong = np.flatnonzero(np.bincount(places, minlength=self.num_blocks) != 1)
        assert not wrong.size, f"blocks lost, or free and held: {wrong[:8].tolist()}"
        references = self._references if self.keeps_prefixes else np.minimum(counts, 1)
        wrong = np.flatnonzero(counts != references)
        assert not wrong.size, f"references differ from holders: {wrong[:8].tolist()}"
        inverse = {block: digest for digest, block in self._block_of.items()}
        assert inverse == self._digest_of, "digests and blocks differ"
        assert self._unheld.keys() <= inverse.keys(), "a cached block has no digest"
        assert inverse.keys().isdisjoint(plain.tolist()), "a plain free block has a digest"

    def _push(self, blocks: Int32Array) -> None:
        top = self._num_stacked
        self._stack[top : top + len(blocks)] = blocks[::-1]
        self._num_stacked = top + len(blocks)

    def _take_fresh(self, count: int) -> Int32Array:
        """Up to ``count`` blocks that nobody has held, lowest first."""
        first = self._first_fresh
        self._first_fresh = min(first + count, self.num_blocks)
        return np.arange(first, self._first_fresh, dtype=np.int32)

    def _evict(self, count: int) -> Int32Array:
        """Take the least recently used cached blocks and forget what they hold."""
        evicted = [self._unheld.popitem(last=False)[0] for _ in range(count)]
        for block in evicted:
            del self._block_of[self._digest_of.pop(block)]
        return np.array(evicted, np.int32)
