"""Sampling values of every slot, as arrays; no row is looked at one by one."""

from __future__ import annotations

import numpy as np

from engine.sampling.philox import DrawKeys
from engine.sampling.rules import SamplingRows
from engine.spec.steps import Int32Array, SlotSampling


class SamplingTable:
    """Sampling values by slot. A slot never started is greedy."""

    def __init__(self, num_slots: int) -> None:
        self._temperatures = np.zeros(num_slots, dtype=np.float32)
        self._min_ps = np.zeros(num_slots, dtype=np.float32)
        self._top_ks = np.zeros(num_slots, dtype=np.int32)
        self._top_ps = np.ones(num_slots, dtype=np.float32)
        self._seeds = np.zeros(num_slots, dtype=np.uint64)
        self._choices = np.zeros(num_slots, dtype=np.int32)
        self._num_logprobs = np.full(num_slots, -1, dtype=np.int32)
        self._is_greedy = np.ones(num_slots, dtype=np.bool_)

    def put(self, slot: int, sampling: SlotSampling) -> None:
        """Replace the slot's values."""
        self._temperatures[slot] = sampling.temperature
        self._min_ps[slot] = sampling.min_p
        self._top_ks[slot] = sampling.top_k
        self._top_ps[slot] = sampling.top_p
        self._seeds[slot] = sampling.seed
        self._choices[slot] = sampling.choice
        self._num_logprobs[slot] = sampling.num_logprobs
        self._is_greedy[slot] = sampling.temperature == 0 and sampling.num_logprobs < 0

    def rows(self, slots: Int32Array, positions: Int32Array) -> SamplingRows:
        """Values of rows i4[R] at output ``positions`` i4[R]."""
        return SamplingRows(
            temperatures=self._temperatures[slots],
            min_ps=self._min_ps[slots],
            top_ks=self._top_ks[slots],
            top_ps=self._top_ps[slots],
            keys=DrawKeys(
                seeds=self._seeds[slots], choices=self._choices[slots], positions=positions
            ),
        )

    def num_logprobs(self, slots: Int32Array) -> Int32Array:
        """How many best tokens each row tells, -1 for rows that tell nothing."""
        return self._num_logprobs[slots]

    def are_greedy(self, slots: Int32Array) -> bool:
        """Whether every row is greedy and tells nothing."""
        return bool(self._is_greedy[slots].all())
