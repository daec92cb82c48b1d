"""Paged KV memory: which blocks are free, and the books that must always balance."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.steps import Int32Array


class BlockPool:
    """Fixed blocks of KV memory, handed out last-freed first.

    The free list is one array used as a stack, so a whole step's blocks come in one slice.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, f"{num_blocks} KV blocks"
        self.num_blocks = num_blocks
        self._stack: Int32Array = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = num_blocks

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1."""
        return 1.0 - self._num_free / self.num_blocks

    def can_allocate(self, count: int) -> bool:
        return count <= self._num_free

    def allocate(self, count: int) -> Int32Array:
        """Take ``count`` blocks; the caller has asked :meth:`can_allocate`."""
        assert count <= self._num_free, f"{count} blocks asked, {self._num_free} free"
        top = self._num_free
        self._num_free = top - count
        return self._stack[self._num_free : top][::-1].copy()

    def free(self, blocks: Int32Array) -> None:
        """Give blocks back, so that the first of them is handed out again first."""
        top = self._num_free
        self._stack[top : top + len(blocks)] = blocks[::-1]
        self._num_free = top + len(blocks)

    def check_integrity(self, held: Iterable[Int32Array]) -> None:
        """Assert that every block is either free or held exactly once."""
        parts = [self._stack[: self._num_free], *held]
        seen = np.bincount(np.concatenate(parts), minlength=self.num_blocks)
        assert len(seen) == self.num_blocks, "a block id beyond the pool is in use"
        wrong = np.flatnonzero(seen != 1)
        assert not wrong.size, f"blocks lost or held twice: {wrong[:8].tolist()}"
