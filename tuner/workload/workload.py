"""What a workload is: requests with a time and lengths, where they came from, what was cut.

Value types only: numpy, no pandas, so that the simulator can import them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.spec.errors import WorkloadError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MINUTE_S = 60.0
# Bins that arrivals are counted in: the shortest of these that gives at most MOST_BINS.
BINS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)
MOST_BINS = 240


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request to send: when (seconds from the workload's start) and how long.

    ``prefix_id``: requests with the same one start with the same tokens. ``hash_ids``: one id
    per 512-token block of the prompt (Mooncake); equal leading ids are a shared prefix. A smaller
    ``priority`` is more urgent.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix_id: str | None = None
    hash_ids: tuple[int, ...] = ()
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """A number of clients, each sending its next request when its last one has returned.

    ``limit_s``: no new request is sent after that many seconds; None = until all are sent. They
    start one after the other, evenly over ``stagger_s``; 0 = all at once.
    """

    concurrency: int
    limit_s: float | None = None
    stagger_s: float = 0.0

    def start_s(self, client: int) -> float:
        """When client number ``client``, from 0, sends its first request."""
        return client * self.stagger_s / self.concurrency


class CutKind(StrEnum):
    """The ways a workload is made smaller; each one used is reported."""

    NO_OUTPUT = "no_output"
    START = "start"
    SECONDS = "seconds"
    REQUESTS = "requests"
    KEEP = "keep"
    MAX_INPUT = "max_input"
    MAX_OUTPUT = "max_output"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One explicit cut: its limit, the rows it touched out of how many, and the tokens it took.

    For the window cuts a touched row is left out; for ``max_*`` it is kept, shorter, and
    ``largest`` is the longest value there was.
    """

    kind: CutKind
    limit: float
    rows: int
    of_rows: int
    tokens: int = 0
    largest: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether what is left is not what was asked for: less than the source has, or fewer
        requests than were named."""
        return self.rows > 0 or self._is_short

    @property
    def _is_short(self) -> bool:
        return self.kind is CutKind.REQUESTS and self.of_rows < self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "limit": self.limit,
            "rows": self.rows,
            "of_rows": self.of_rows,
            "tokens": self.tokens,
            "largest": self.largest,
        }

    def __str__(self) -> str:
        if self.kind is CutKind.NO_OUTPUT:
            return f"without output tokens: left out {self.rows} of {self.of_rows} rows"
        if self._is_short:
            return f"requests={self.limit:.0f}, but only {self.of_rows} come in its time"
        if self.largest is None:
            return f"{self.kind}={self.limit:g} left out {self.rows} of {self.of_rows} rows"
        return (
            f"{self.kind}={self.limit:g} shortened {self.rows} of {self.of_rows} rows "
            f"by {self.tokens} tokens in all (the longest was {self.largest})"
        )


@dataclass(frozen=True, kw_only=True)
class WorkloadSource:
    """Where a workload comes from.

    ``sha256`` is of the source file's bytes, or of the generated rows of a synthetic one.
    ``rows`` and ``span_s`` describe the source before any cut; ``scale`` divides its times.
    ``spread_s`` > 0: stamps were quantised by about that much and arrivals spread inside.
    """

    spec: str
    seed: int
    sha256: str
    rows: int
    span_s: float
    scale: float = 1.0
    input_scale: float = 1.0
    output_scale: float = 1.0
    spread_s: float = 0.0
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests in order of arrival; ``closed`` set = their times are ignored.

    Raises:
        WorkloadError: no request is left.
    """

    arrivals: tuple[Arrival, ...]
    source: WorkloadSource
    closed: ClosedLoop | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.arrivals:
            cuts = "; ".join(map(str, self.source.cuts)) or "its source is empty"
            raise WorkloadError(f"workload {self.source.spec!r}: no request is left ({cuts})")

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def arrival_s(self) -> FloatArray:
        """Arrival times in seconds, f8[requests]."""
        return np.array([a.arrival_s for a in self.arrivals], dtype=np.float64)

    @property
    def input_tokens(self) -> IntArray:
        return np.array([a.input_tokens for a in self.arrivals], dtype=np.int64)

    @property
    def output_tokens(self) -> IntArray:
        return np.array([a.output_tokens for a in self.arrivals], dtype=np.int64)

    @property
    def span_s(self) -> float:
        """First to last arrival, seconds (0 for a closed loop)."""
        return self.arrivals[-1].arrival_s - self.arrivals[0].arrival_s

    @property
    def rate_rps(self) -> float | None:
        """Requests per second over the span; None for a closed loop or a single request."""
        return len(self) / self.span_s if self.span_s > 0 else None

    @property
    def is_lockstep(self) -> bool:
        """Whether clients start at once and all requests are alike, so that their prompts come in
        bursts to the end."""
        closed = self.closed
        if closed is None or closed.stagger_s > 0 or not 1 < closed.concurrency < len(self):
            return False
        return len({(a.input_tokens, a.output_tokens) for a in self.arrivals}) == 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was cut, and what a fixed length implies."""
        cuts = tuple(f"workload: {cut}" for cut in self.source.cuts if cut.is_told)
        return (*cuts, self._lockstep_warning) if self.is_lockstep else cuts

    @property
    def _lockstep_warning(self) -> str:
        assert self.closed is not None, "only clients are in lockstep"
        inputs, outputs = self.arrivals[0].input_tokens, self.arrivals[0].output_tokens
        return (
            f"workload: {self.closed.concurrency} clients start at once with requests of one "
            "length, so they move in lockstep and every prompt waits for a burst of others: TTFT "
            "is far above that of load tools, which draw lengths "
            f"(input=uniform:0.8..1*{inputs},output=uniform:0.8..1*{outputs}); stagger_s= spreads "
            "the clients' start"
        )

    @property
    def shares_beginnings(self) -> bool:
        """Whether two prompts start with the same tokens, as far as the source tells."""
        ids = [a.prefix_id for a in self.arrivals if a.prefix_id is not None]
        firsts = [a.hash_ids[0] for a in self.arrivals if a.hash_ids]
        return len(set(ids)) < len(ids) or len(set(firsts)) < len(firsts)

    def describe(self) -> dict[str, Any]:
        """The facts kept beside every result: shape, lengths, source and cuts, JSON-able."""
        source = self.source
        return {
            "spec": source.spec,
            "seed": source.seed,
            "sha256": source.sha256,
            "source_rows": source.rows,
            "source_span_s": source.span_s,
            "scale": source.scale,
            "input_scale": source.input_scale,
            "output_scale": source.output_scale,
            "spread_s": source.spread_s,
            "cuts": [cut.to_json() for cut in source.cuts],
            "concurrency": self.closed.concurrency if self.closed else None,
            "stagger_s": self.closed.stagger_s if self.closed else None,
            "rows": len(self),
            "span_s": self.span_s,
            "rate_rps": self.rate_rps,
            "gap_cv": gap_cv(self.arrival_s),
            "peak_to_mean_per_minute": peak_to_mean(self.arrival_s),
            "input_tokens": _length_facts(self.input_tokens),
            "output_tokens": _length_facts(self.output_tokens),
            "joint_histogram": joint_histogram(self.input_tokens, self.output_tokens),
        }


def gap_cv(arrival_s: FloatArray) -> float | None:
    """Standard deviation over mean of the gaps between arrivals; None without two gaps."""
    gaps = np.diff(arrival_s)
    if gaps.size < 2 or gaps.mean() <= 0:
        return None
    return float(gaps.std() / gaps.mean())


def peak_to_mean(arrival_s: FloatArray) -> float | None:
    """Most arrivals in one minute over the mean per minute; None when all fall into one."""
    counts = np.bincount(((arrival_s - arrival_s[0]) // MINUTE_S).astype(np.int64))
    return float(counts.max() / counts.mean()) if counts.size > 1 else None


def over_time(arrival_s: FloatArray) -> dict[str, Any]:
    """Arrivals in each stretch of ``bin_s`` seconds from the first on, in at most
    :data:`MOST_BINS` stretches."""
    passed_s = arrival_s - arrival_s[0]
    bin_s = next(
        (b for b in BINS_S if passed_s[-1] < b * MOST_BINS), passed_s[-1] / (MOST_BINS - 1)
    )
    return {"bin_s": float(bin_s), "counts": np.bincount((passed_s // bin_s).astype(int)).tolist()}


def joint_histogram(input_tokens: IntArray, output_tokens: IntArray) -> dict[str, Any]:
    """Counts over powers of two of input (rows) and output (columns) length.

    Averages hide traffic with two peaks, so the joint counts travel with every workload.
    Edge i is the smallest length of bin i.
    """
    rows, columns = _log2_bin(input_tokens), _log2_bin(output_tokens)
    counts = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return {
        "input_edges": [2**i for i in range(counts.shape[0])],
        "output_edges": [2**i for i in range(counts.shape[1])],
        "counts": counts.tolist(),
    }


def rows_sha256(arrivals: Sequence[Arrival]) -> str:
    """A hash of generated rows, so that a synthetic workload can be told apart like a file."""
    digest = hashlib.sha256()
    for a in arrivals:
        digest.update(f"{a.arrival_s!r},{a.input_tokens},{a.output_tokens}\n".encode())
    return digest.hexdigest()


def _length_facts(lengths: IntArray) -> dict[str, float]:
    p50, p95 = np.percentile(lengths, (50, 95))
    return {
        "mean": float(lengths.mean()),
        "p50": float(p50),
        "p95": float(p95),
        "max": float(lengths.max()),
    }


def _log2_bin(lengths: IntArray) -> IntArray:
    # frexp is exact: 2**k falls into bin k, never one below through rounding of a logarithm.
    return np.frexp(lengths.astype(np.float64))[1].astype(np.int64) - 1
