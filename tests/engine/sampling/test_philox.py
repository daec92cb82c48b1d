"""Counter-based randomness against the published vectors, and its independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.philox import DrawKeys, philox4x32, uniform

# kat_vectors of Random123 1.14: counter, key, answer.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def keys_of(seeds: list[int], choices: list[int], positions: list[int]) -> DrawKeys:
    return DrawKeys(
        seeds=np.array(seeds, dtype=np.uint64),
        choices=np.array(choices, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
    )


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers_in_numpy_and_torch(
    counter: list[int], key: list[int], answer: list[int]
) -> None:
    c = [np.array([word], dtype=np.int64) for word in counter]
    k = [np.array([word], dtype=np.int64) for word in key]
    in_numpy = philox4x32((c[0], c[1], c[2], c[3]), (k[0], k[1]))
    t = [torch.tensor([word]) for word in counter]
    u = [torch.tensor([word]) for word in key]
    in_torch = philox4x32((t[0], t[1], t[2], t[3]), (u[0], u[1]))
    assert [int(word[0]) for word in in_numpy] == answer
    assert [int(word[0]) for word in in_torch] == answer


@given(
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 2**31 - 1),
    position=st.integers(0, 2**31 - 1),
    num_lanes=st.integers(1, 11),
    row=st.integers(0, 4),
)
def test_a_draw_does_not_depend_on_its_row_or_its_neighbours(
    seed: int, choice: int, position: int, num_lanes: int, row: int
) -> None:
    alone = uniform(keys_of([seed], [choice], [position]), num_lanes=num_lanes)
    among = keys_of([0, 1, 2, 3, 4], [0, 0, 1, 1, 2], [0, 1, 2, 3, 4])
    among.seeds[row], among.choices[row], among.positions[row] = seed, choice, position
    assert np.array_equal(uniform(among, num_lanes=num_lanes + 3)[row, :num_lanes], alone[0])
    assert ((alone >= 0) & (alone < 1)).all()


def test_seeds_positions_choices_and_lanes_give_different_and_even_draws() -> None:
    seeds = np.repeat(np.arange(40, dtype=np.uint64), 50)
    positions = np.tile(np.arange(50, dtype=np.int32), 40)
    draws = np.concatenate(
        [
            uniform(
                DrawKeys(
                    seeds=seeds, choices=np.full(2000, choice, dtype=np.int32), positions=positions
                ),
                num_lanes=5,
            ).ravel()
            for choice in (0, 1)
        ]
    )
    assert len(np.unique(draws)) == len(draws)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert abs(counts - len(draws) / 20).max() < 5 * np.sqrt(len(draws) / 20)
    assert uniform(keys_of([2**63 + 5], [0], [0])) != uniform(keys_of([5], [0], [0]))
