"""How much memory the token counts of penalties take; no torch."""

from __future__ import annotations

# A count in four bytes and whether the prompt has the token in one, for each of the vocabulary.
BYTES_PER_TOKEN = 5
FIRST_ROWS = 4


def more_rows(rows: int, num_slots: int) -> int:
    """Rows of the pool after ``rows`` are full: twice as many, but no more than slots."""
    return min(num_slots, max(FIRST_ROWS, 2 * rows))


def count_bytes(vocab_size: int, num_slots: int) -> int:
    """The most that the pool takes, when all ``num_slots`` sequences have penalties: while it grows
    for the last time, the rows of before lie beside the new ones.
    """
    old = rows = 0
    while rows < num_slots:
        old, rows = rows, more_rows(rows, num_slots)
    return (old + rows) * vocab_size * BYTES_PER_TOKEN
