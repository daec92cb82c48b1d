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
    by_blocks: list[int] = []
    for i, arrival in enumerate(workload.arrivals):
        if arrival.prefix_id is not None:
            by_prefix[arrival.prefix_id].append(i)
        elif arrival.hash_ids:
            by_blocks.append(i)
    for alike in by_prefix.values():
        # The longest shares as much as the second longest has, every other one all of its own.
        second = sorted(lengths[alike])[-2] if len(alike) > 1 else 0
        shared[alike] = np.minimum(lengths[alike], second)
    # In order, each stands beside one with which it shares most.
    by_blocks.sort(key=lambda i: workload.arrivals[i].hash_ids)
    for one, other in pairwise(by_blocks):
        blocks = _num_alike(workload.arrivals[one].hash_ids, workload.arrivals[other].hash_ids)
        alike_tokens = blocks * HASH_BLOCK_TOKENS
        shared[one] = max(shared[one], alike_tokens)
        shared[other] = max(shared[other], alike_tokens)
    own: IntArray = np.maximum(lengths - shared, 1)
    return own


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
