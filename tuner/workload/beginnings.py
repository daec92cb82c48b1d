"""Which part of each prompt no prefix cache can hold, as far as the workload's source tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, takewhile

import numpy as np

from tuner.workload.rows import HASH_BLOCK_TOKENS
from tuner.workload.workload import IntArray, Workload


def own_tokens(workload: Workload) -> IntArray:
    """Tokens of each prompt after the longest beginning that it shares with another, at least the
    one that is computed of a prompt which is found whole, i64[requests]."""
    lengths = workload.input_tokens
    shared = np.zeros_like(lengths)
    by_prefix: dict[str, list[int]] = defaultdict(list)
    by_blocks: list[tuple[tuple[int, ...], int, int]] = []  # ids, tokens, request
    for i, arrival in enumerate(workload.arrivals):
        if arrival.prefix_id is not None:
            by_prefix[arrival.prefix_id].append(i)
        elif arrival.hash_ids:
            tokens = int(lengths[i])
            # Ids of blocks that the prompt does not reach say nothing.
            ids = arrival.hash_ids[: -(-tokens // HASH_BLOCK_TOKENS)]
            by_blocks.append((ids, tokens, i))
    for alike in by_prefix.values():
        # The longest shares as much as the second longest has, every other one all of its own.
        second = sorted(lengths[alike])[-2] if len(alike) > 1 else 0
        shared[alike] = np.minimum(lengths[alike], second)
    # In order, each stands beside one with which it shares most.
    by_blocks.sort()
    for (ids, tokens, one), (other_ids, other_tokens, other) in pairwise(by_blocks):
        # A prompt may end within its last block.
        alike_tokens = min(_num_alike(ids, other_ids) * HASH_BLOCK_TOKENS, tokens, other_tokens)
        shared[one] = max(shared[one], alike_tokens)
        shared[other] = max(shared[other], alike_tokens)
    own: IntArray = np.maximum(lengths - shared, 1)
    return own


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
