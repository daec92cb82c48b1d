"""Prompts: seeded, of the length asked for, with the prefixes a trace declares."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.workload.prompts import PromptMaker
from tuner.workload.rows import HASH_BLOCK_TOKENS
from tuner.workload.workload import Arrival


def arrival(tokens: int, **extra: object) -> Arrival:
    return Arrival(arrival_s=0, input_tokens=tokens, output_tokens=1, **extra)


def test_prompts_are_seeded_and_share_the_prefixes_a_trace_declares() -> None:
    maker = PromptMaker(seed=1, vocab_size=1000)
    assert maker.make(7, arrival(50)) == PromptMaker(seed=1, vocab_size=1000).make(7, arrival(50))
    assert maker.make(7, arrival(50)) != maker.make(8, arrival(50))
    one, two = (
        maker.make(i, arrival(2 * HASH_BLOCK_TOKENS, hash_ids=(5, 6 + i))) for i in range(2)
    )
    assert one[:HASH_BLOCK_TOKENS] == two[:HASH_BLOCK_TOKENS]
    assert one[HASH_BLOCK_TOKENS:] != two[HASH_BLOCK_TOKENS:]
    short, long = (maker.make(n, arrival(n, prefix_id="chat")) for n in (30, 60))
    assert long[:30] == short
    assert len(maker.make(0, arrival(700, hash_ids=(1,)))) == 700


@settings(deadline=None)
@given(
    st.integers(min_value=1, max_value=1500),
    st.integers(min_value=1, max_value=200_000),
    st.integers(min_value=0, max_value=2**32),
)
def test_a_prompt_has_its_length_and_ids_below_the_vocabulary(
    tokens: int, vocab_size: int, seed: int
) -> None:
    prompt = PromptMaker(seed=seed, vocab_size=vocab_size).make(3, arrival(tokens))
    assert len(prompt) == tokens
    assert 0 <= min(prompt) <= max(prompt) < vocab_size
