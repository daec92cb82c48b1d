"""Samples a step's rows by Triton kernels; the host waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.sampling.edits import RowEdits, TokenCounts
from engine.sampling.philox import DrawKeys
from engine.sampling.rules import SamplingRows
from engine.sampling.triton_border import find_borders
from engine.sampling.triton_draw import draw_rows
from engine.sampling.triton_rows import PackedRows, Source, chunk_of, pack_rows


@dataclass(frozen=True, kw_only=True)
class DrawnRows:
    """``ids`` i8[R] by the rule of :mod:`engine.sampling.rules`, and ``is_finite`` bool[R]:
    whether the model's logits of a row had anything to choose from.
    """

    ids: Tensor
    is_finite: Tensor


def draw_on_device(
    logits: Tensor,
    values: SamplingRows,
    *,
    edits: Sequence[RowEdits] = (),
    counts: TokenCounts | None = None,
    chunk: int | None = None,
) -> DrawnRows:
    """Sample R > 0 rows of the model's ``logits`` [R, V] (float32, float16 or bfloat16).

    Runs on CUDA, or anywhere interpreted. ``counts`` hold the tokens of rows whose ``edits`` have
    penalties. ``chunk``, a power of two from 4, changes no answer.
    """
    rows = pack_rows(values, edits, vocab_size=logits.shape[1])
    words = to_device(rows.words, logits.device)
    return launch(logits, rows, words, counts=counts, chunk=chunk)


def largest_on_device(logits: Tensor) -> DrawnRows:
    """The largest logit of R > 0 rows, as :func:`draw_on_device` with nothing to draw."""
    nothing = np.zeros(len(logits), dtype=np.int32)
    greedy = nothing.astype(np.float32)
    values = SamplingRows(
        temperatures=greedy,
        min_ps=greedy,
        top_ks=nothing,
        top_ps=greedy + 1,
        keys=DrawKeys(seeds=nothing.astype(np.uint64), choices=nothing, positions=nothing),
    )
    return draw_on_device(logits, values)


def launch(
    logits: Tensor,
    rows: PackedRows,
    words: Tensor,
    *,
    counts: TokenCounts | None = None,
    chunk: int | None = None,
) -> DrawnRows:
    """:func:`draw_on_device` with the words of ``rows`` on the device already.

    What is launched depends only on the shape and dtype of ``logits`` and on ``rows.kinds``: a
    CUDA graph of it serves other rows of these kinds, once their words are copied into ``words``.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tables = counts.tables if counts is not None else (words, words)
    source = Source(
        logits=logits,
        words=words,
        counts=tables[0],
        is_in_prompt=tables[1],
        vocab_size=logits.shape[1],
        kinds=rows.kinds,
        chunk=chunk or chunk_of(len(logits)),
    )
    borders = find_borders(source) if rows.kinds.looks_first else None
    ids, is_finite = draw_rows(source, borders)
    return DrawnRows(ids=ids, is_finite=is_finite)
