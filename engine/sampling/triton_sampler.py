"""Samples a step's rows by Triton kernels; the host waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.kernels.transfer import to_device
from engine.sampling.edits import RowEdits, TokenCounts
from engine.sampling.philox import DrawKeys
from engine.sampling.rules import SamplingRows
from engine.sampling.triton_draw import draw_rows
from engine.sampling.triton_floor import find_borders
from engine.sampling.triton_rows import FEW_ROWS, PackedRows, Source, chunk_of, pack_rows


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
    return draw_on_device(logits, _greedy(len(logits)))


def _greedy(num_rows: int) -> SamplingRows:
    nothing = np.zeros(num_rows, dtype=np.int32)
    zeros = nothing.astype(np.float32)
    return SamplingRows(
        temperatures=zeros,
        min_ps=zeros,
        top_ks=nothing,
        top_ps=zeros + 1,
        keys=DrawKeys(seeds=nothing.astype(np.uint64), choices=nothing, positions=nothing),
    )


def compile_kernels(
    *, vocab_size: int, dtype: torch.dtype, device: torch.device, counts: TokenCounts
) -> None:
    """Sample throw-away rows of all kinds in steps of all sizes, so that no request has to wait for
    a compiler. Compiled kernels stay in Triton's cache on disk.
    """
    none = np.zeros(0, dtype=np.int32)
    edit = RowEdits(
        row=0,
        bias_ids=none,
        bias_values=none.astype(np.float32),
        banned_ids=none,
        penalties=(1.0, 0.0, 0.0),
        count_row=-1,
    )
    for num_rows in (1, FEW_ROWS + 1):
        logits = torch.zeros((num_rows, vocab_size), dtype=dtype, device=device)
        free = _greedy(num_rows)
        limited = replace(
            free,
            temperatures=free.temperatures + 1,
            top_ks=free.top_ks + 1,
            top_ps=free.top_ps * np.float32(0.5),
        )
        for values in (free, limited):
            for edits in ((), (edit,)):
                draw_on_device(logits, values, edits=edits, counts=counts)


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
    # Without counts nothing is read there; types as with them spare compiling twice.
    tables = (words, words.view(torch.uint8)) if counts is None else counts.tables
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
