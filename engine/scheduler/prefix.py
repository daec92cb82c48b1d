"""Names for the beginnings of token sequences: one digest per full KV block.

A block's digest covers its tokens and, through its parent's digest, all tokens before them
(the hash chain of vLLM's automatic prefix caching), so equal digests mean equal KV content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from struct import pack

import numpy as np

from engine.spec.steps import Int32Array

DIGEST_BYTES = 16


class PrefixHasher:
    """Digests of ``block_size`` tokens each.

    ``namespace`` says what else the KV content depends on (weights, KV dtype): digests of
    different namespaces never match.

    Equal digests count as equal tokens without a look at the tokens, and a wrong match would
    continue one user's prompt from another's. Prompts come from outside, so a collision must be
    infeasible to construct, not only unlikely: BLAKE2b with 128 bits, not ``hash()``.
    """

    def __init__(self, block_size: int, *, namespace: bytes = b"") -> None:
        assert block_size >= 1, f"{block_size} tokens per block"
        self.block_size = block_size
        self.namespace = namespace

    def root(self, salt: bytes = b"") -> bytes:
        """Parent digest of first blocks; sequences share blocks only under equal salts."""
        length = len(self.namespace).to_bytes(8, "little")  # else b"a" + b"bc" is b"ab" + b"c"
        material = length + self.namespace + salt
        return blake2b(material, digest_size=DIGEST_BYTES, person=b"root").digest()

    def digests(self, token_ids: Sequence[int] | Int32Array, *, parent: bytes = b"") -> list[bytes]:
        """One digest per full block of ``token_ids``; tokens beyond the last one are left out.

        ``parent`` is the digest of the block before, or empty for the start of a sequence.
        """
        num_blocks = len(token_ids) // self.block_size
        raw = _little_endian(token_ids[: num_blocks * self.block_size])
        width = 4 * self.block_size
        digest = parent or self.root()
        found: list[bytes] = []
        for start in range(0, len(raw), width):
            block = digest + raw[start : start + width]
            digest = blake2b(block, digest_size=DIGEST_BYTES).digest()
            found.append(digest)
        return found


class PrefixChain:
    """The digests of one sequence, which grow with its known tokens."""

    def __init__(self, hasher: PrefixHasher, *, salt: bytes = b"") -> None:
        self.digests: list[bytes] = []
        self._hasher = hasher
        self._root = hasher.root(salt)

    def extend_to(
        self, num_tokens: int, token_slice: Callable[[int, int], Sequence[int] | Int32Array]
    ) -> None:
        """Add the digests of blocks that are full with ``num_tokens`` tokens.

        ``token_slice(start, stop)`` gives known tokens; it is asked only for new blocks.
        """
        size = self._hasher.block_size
        start, stop = len(self.digests) * size, num_tokens // size * size
        if stop <= start:
            return
        token_ids = token_slice(start, stop)
        assert len(token_ids) == stop - start, f"{len(token_ids)} tokens for {start}..{stop - 1}"
        parent = self.digests[-1] if self.digests else self._root
        self.digests += self._hasher.digests(token_ids, parent=parent)


def _little_endian(token_ids: Sequence[int] | Int32Array) -> bytes:
    if isinstance(token_ids, np.ndarray):
        return token_ids.astype("<i4").tobytes()
    return pack(f"<{len(token_ids)}i", *token_ids)
