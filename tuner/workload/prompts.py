"""Prompts for a load run: seeded random ids, with the prefixes that the workload declares."""

from __future__ import annotations

import secrets
import zlib

import numpy as np

from tuner.workload.rows import HASH_BLOCK_TOKENS
from tuner.workload.workload import Arrival


def unseen_seed() -> int:
    """A seed of prompts that no run had before: a server finds those of a run that is repeated in
    its prefix cache, and would seem to compute them in no time."""
    return secrets.randbits(62)


class PromptMaker:
    """Token ids below ``vocab_size``; the same seed, index and arrival give the same prompt.

    Blocks with equal ``hash_ids`` are equal. Requests with one ``prefix_id`` share as many
    leading tokens as the shorter one has: such traces do not say how long the prefix is.
    """

    def __init__(self, *, seed: int, vocab_size: int) -> None:
        self._seed = seed
        self._vocab_size = vocab_size

    def make(self, index: int, arrival: Arrival) -> tuple[int, ...]:
        """The prompt of request ``index``, ``arrival.input_tokens`` ids long."""
        if arrival.prefix_id is not None:
            key = zlib.crc32(arrival.prefix_id.encode())
            return tuple(self._ids(2, key, arrival.input_tokens))
        if not arrival.hash_ids:
            return tuple(self._ids(0, index, arrival.input_tokens))
        ids: list[int] = []
        for block in arrival.hash_ids:
            ids += self._ids(1, block, HASH_BLOCK_TOKENS)
        # Prompts whose ids cover less than their length go on with tokens of their own.
        ids += self._ids(0, index, max(0, arrival.input_tokens - len(ids)))
        return tuple(ids[: arrival.input_tokens])

    def _ids(self, kind: int, key: int, count: int) -> list[int]:
        rng = np.random.default_rng([self._seed, kind, key])
        ids: list[int] = rng.integers(0, self._vocab_size, size=count).tolist()
        return ids
