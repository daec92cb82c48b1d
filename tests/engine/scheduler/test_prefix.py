"""Prefix digests: equal for equal beginnings, whoever computes them and in whatever pieces."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.prefix import DIGEST_BYTES, PrefixChain, PrefixHasher

tokens = st.lists(st.integers(0, 3) | st.integers(0, 2**31 - 1), max_size=40)
block_sizes = st.integers(1, 5)


@given(shared=tokens, left=tokens, right=tokens, block_size=block_sizes)
def test_two_sequences_match_in_exactly_the_full_blocks_that_begin_them_alike(
    shared: list[int], left: list[int], right: list[int], block_size: int
) -> None:
    hasher = PrefixHasher(block_size)
    first, second = shared + left, shared + right
    num_equal = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    pairs = zip(hasher.digests(first), hasher.digests(second), strict=False)
    matches = [a == b for a, b in pairs]
    num_blocks = num_equal // block_size
    assert matches == [True] * num_blocks + [False] * (len(matches) - num_blocks)
    assert len(hasher.digests(first)) == len(first) // block_size


@given(token_ids=tokens, block_size=block_sizes, stops=st.lists(st.integers(0, 40)))
def test_a_chain_grown_in_any_pieces_equals_one_pass_and_reads_each_token_once(
    token_ids: list[int], block_size: int, stops: list[int]
) -> None:
    hasher = PrefixHasher(block_size)
    chain = PrefixChain(hasher)
    read: list[int] = []

    def token_slice(start: int, stop: int) -> list[int]:
        read.extend(range(start, stop))
        return token_ids[start:stop]

    for stop in [*stops, len(token_ids)]:
        chain.extend_to(min(stop, len(token_ids)), token_slice)
    assert chain.digests == hasher.digests(token_ids)
    assert read == list(range(len(token_ids) // block_size * block_size))


@given(token_ids=tokens, block_size=block_sizes, cut=st.integers(0, 8))
def test_digests_go_on_from_a_parent_and_from_any_kind_of_array(
    token_ids: list[int], block_size: int, cut: int
) -> None:
    hasher = PrefixHasher(block_size)
    whole = hasher.digests(token_ids)
    head = hasher.digests(token_ids[: cut * block_size])
    parent = head[-1] if head else b""
    assert head + hasher.digests(token_ids[cut * block_size :], parent=parent) == whole
    assert hasher.digests(tuple(token_ids)) == whole
    spread = np.repeat(np.array(token_ids, np.int32), 2)
    assert hasher.digests(spread[::2]) == whole


def test_namespaces_and_salts_never_match_each_other() -> None:
    ids = range(8)
    kinds = [(b"", b""), (b"fp8", b""), (b"", b"fp8"), (b"fp", b"8"), (b"bf16", b""), (b"", b"u1")]
    chains = [PrefixChain(PrefixHasher(4, namespace=n), salt=salt) for n, salt in kinds]
    for chain in chains:
        chain.extend_to(8, lambda start, stop: ids[start:stop])
    digests = {digest for chain in chains for digest in chain.digests}
    assert len(digests) == 2 * len(kinds)


def test_the_same_blocks_in_another_place_do_not_match() -> None:
    digests = PrefixHasher(2).digests([1, 2, 1, 2, 1, 2])
    assert len(set(digests)) == 3


def test_digests_are_blake2b_of_parent_and_little_endian_tokens_in_every_process() -> None:
    hasher = PrefixHasher(2, namespace=b"model")
    (digest,) = hasher.digests([1, 258])
    material = hasher.root() + bytes([1, 0, 0, 0, 2, 1, 0, 0])
    assert digest == blake2b(material, digest_size=DIGEST_BYTES).digest()
    assert hasher.root().hex() == "165435be2108d31c8c1398e1f06c046f"


def test_tokens_that_are_not_known_yet_are_refused() -> None:
    chain = PrefixChain(PrefixHasher(4))
    with pytest.raises(AssertionError, match=r"3 tokens for 0\.\.3"):
        chain.extend_to(4, lambda start, stop: [1, 2, 3])
    assert chain.digests == []
