"""What no prefix cache can hold of prompts, against the prompts themselves."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.workload.beginnings import own_tokens
from tuner.workload.prompts import PromptMaker
from tuner.workload.workload import Arrival, Workload, WorkloadSource

SOURCE = WorkloadSource(spec="test", seed=0, sha256="", rows=1, span_s=1.0)
lengths = st.integers(1, 1600)
arrivals = st.one_of(
    st.builds(Arrival, arrival_s=st.just(0.0), input_tokens=lengths, output_tokens=st.just(1)),
    st.builds(
        Arrival,
        arrival_s=st.just(0.0),
        input_tokens=lengths,
        output_tokens=st.just(1),
        prefix_id=st.sampled_from([None, "a", "b"]),
        hash_ids=st.lists(st.integers(0, 2), max_size=3).map(tuple),
    ),
)


def alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def of_blocks(tokens: int, *ids: int) -> Arrival:
    return Arrival(arrival_s=0.0, input_tokens=tokens, output_tokens=1, hash_ids=ids)


@settings(max_examples=30, deadline=None)
@example([of_blocks(1, 1), of_blocks(4, 1)])  # as much as the shorter one has
@example([of_blocks(700, 0, 0), of_blocks(10, 0, 1), of_blocks(600, 0, 2)])  # an id out of reach
@given(st.lists(arrivals, min_size=1, max_size=5))
def test_a_prompt_owns_what_comes_after_all_that_it_shares(found: list[Arrival]) -> None:
    load = Workload(arrivals=tuple(found), source=SOURCE)
    maker = PromptMaker(seed=1, vocab_size=1_000_000)
    prompts = [maker.make(i, arrival) for i, arrival in enumerate(found)]
    shared = [
        max((alike(one, other) for j, other in enumerate(prompts) if j != i), default=0)
        for i, one in enumerate(prompts)
    ]
    expected = np.maximum(load.input_tokens - np.array(shared), 1)
    # Two drawn tokens may be the same one by chance.
    assert (np.abs(own_tokens(load) - expected) <= 1).all()
