"""Requests as columns, and the explicit cuts and scalings a SPEC may ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tuner.workload.workload import Arrival, Cut, CutKind, FloatArray, IntArray

HASH_BLOCK_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a SPEC asks of the reader of a trace.

    ``start_s``, ``seconds`` and ``requests`` are cut by :class:`RowCuts` afterwards; a reader that
    draws its rows need not draw others. ``output_tokens`` stands in for lengths a row lacks.
    """

    seed: int
    start_s: float = 0.0
    seconds: float | None = None
    requests: int | None = None
    output_tokens: int | None = None
    input_cv: float | None = None
    output_cv: float | None = None

    @property
    def end_s(self) -> float:
        return math.inf if self.seconds is None else self.start_s + self.seconds


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Columns of one trace or synthetic process, in order of arrival, times from 0.

    ``spread_s`` > 0: the source's stamps were quantised and arrivals were spread. ``cuts`` are
    the source's rows that are not here.
    """

    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    sha256: str = ""
    spread_s: float = 0.0
    prefix_ids: tuple[str | None, ...] = ()
    hash_ids: tuple[tuple[int, ...], ...] = ()
    cuts: tuple[Cut, ...] = ()

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def span_s(self) -> float:
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    def only(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """The rows where ``mask`` is true."""
        kept = np.flatnonzero(mask)
        return replace(
            self,
            arrival_s=self.arrival_s[mask],
            input_tokens=self.input_tokens[mask],
            output_tokens=self.output_tokens[mask],
            prefix_ids=tuple(self.prefix_ids[i] for i in kept) if self.prefix_ids else (),
            hash_ids=tuple(self.hash_ids[i] for i in kept) if self.hash_ids else (),
        )

    def arrivals(self) -> tuple[Arrival, ...]:
        """One value per row; hash ids end where a shortened prompt ends."""
        columns = zip(
            self.arrival_s.tolist(),
            self.input_tokens.tolist(),
            self.output_tokens.tolist(),
            self.prefix_ids or (None,) * len(self),
            self.hash_ids or ((),) * len(self),
            strict=True,
        )
        return tuple(
            Arrival(
                arrival_s=at,
                input_tokens=given,
                output_tokens=wanted,
                prefix_id=prefix,
                hash_ids=blocks[: -(-given // HASH_BLOCK_TOKENS)],
            )
            for at, given, wanted, prefix, blocks in columns
        )


@dataclass(frozen=True, kw_only=True)
class RowCuts:
    """What to take of a source. ``start_s`` and ``seconds`` are in the source's own time.

    Order: the window [start, start + seconds), its first ``requests`` rows, a seeded share
    ``keep`` of them, lengths times ``input_scale`` / ``output_scale``, then ``max_*``, and at
    last all times divided by ``scale``: the same requests, faster.
    """

    start_s: float = 0.0
    seconds: float | None = None
    requests: int | None = None
    keep: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0
    output_scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None

    def apply(self, rows: Rows, rng: np.random.Generator) -> tuple[Rows, tuple[Cut, ...]]:
        """The rows that remain, starting at time 0, and every cut that was made."""
        rows, window_cuts = self._window(rows, rng)
        rows, length_cuts = self._lengths(rows)
        times = (rows.arrival_s - self.start_s) / self.scale
        return replace(rows, arrival_s=times), (*window_cuts, *length_cuts)

    def _window(self, rows: Rows, rng: np.random.Generator) -> tuple[Rows, list[Cut]]:
        cuts: list[Cut] = []

        def leave_out(rows: Rows, kind: CutKind, limit: float, mask: npt.NDArray[np.bool_]) -> Rows:
            dropped = int((~mask).sum())
            tokens = int((rows.input_tokens + rows.output_tokens)[~mask].sum())
            cuts.append(Cut(kind=kind, limit=limit, rows=dropped, of_rows=len(rows), tokens=tokens))
            return rows.only(mask)

        if self.start_s > 0:
            rows = leave_out(rows, CutKind.START, self.start_s, rows.arrival_s >= self.start_s)
        if self.seconds is not None:
            inside = rows.arrival_s < self.start_s + self.seconds
            rows = leave_out(rows, CutKind.SECONDS, self.seconds, inside)
        if self.requests is not None:
            first = np.arange(len(rows)) < self.requests
            rows = leave_out(rows, CutKind.REQUESTS, self.requests, first)
        if self.keep < 1:
            rows = leave_out(rows, CutKind.KEEP, self.keep, rng.random(len(rows)) < self.keep)
        return rows, cuts

    def _lengths(self, rows: Rows) -> tuple[Rows, list[Cut]]:
        inputs = _scaled(rows.input_tokens, self.input_scale)
        outputs = _scaled(rows.output_tokens, self.output_scale)
        cuts: list[Cut] = []
        if self.max_input is not None:
            cuts.append(_length_cut(CutKind.MAX_INPUT, self.max_input, inputs))
            inputs = np.minimum(inputs, self.max_input)
        if self.max_output is not None:
            cuts.append(_length_cut(CutKind.MAX_OUTPUT, self.max_output, outputs))
            outputs = np.minimum(outputs, self.max_output)
        return replace(rows, input_tokens=inputs, output_tokens=outputs), cuts


def _scaled(lengths: IntArray, factor: float) -> IntArray:
    if factor == 1:
        return lengths
    return np.asarray(np.maximum(1, np.rint(lengths * factor)), dtype=np.int64)


def _length_cut(kind: CutKind, limit: int, lengths: IntArray) -> Cut:
    over = lengths[lengths > limit]
    return Cut(
        kind=kind,
        limit=limit,
        rows=int(over.size),
        of_rows=int(lengths.size),
        tokens=int((over - limit).sum()),
        largest=int(lengths.max()) if lengths.size else 0,
    )
