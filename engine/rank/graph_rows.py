"""Which sizes of steps are captured as CUDA graphs; no torch."""

from __future__ import annotations


def graph_rows(most: int, multiple: int) -> tuple[int, ...]:
    """Numbers of tokens for which steps of up to ``most`` are captured, ascending, each a multiple
    of ``multiple``: 1, 2, 4, then in ever larger paces, so that from 8 on padding adds a quarter at
    most.
    """
    found: list[int] = []
    size = 1
    while size <= most:
        found.append(-(-size // multiple) * multiple)
        size += max(1, 2 ** (size.bit_length() - 1) // 4) if size >= 8 else size
    return tuple(sorted({rows for rows in found if rows <= most}))
