"""Lengths of a process as a trace has them: prompt and answer of one request together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.spec.names import did_you_mean
from tuner.spec.errors import WorkloadError
from tuner.workload import traces
from tuner.workload.rows import Wanted
from tuner.workload.workload import IntArray

# A table of rates stands for any number of requests; its lengths are drawn from this many.
TABLE_REQUESTS = 100_000


@dataclass(frozen=True, kw_only=True)
class TraceLengths:
    """The requests of the trace ``path``, of the format ``kind``, as a joint law of lengths: a
    request drawn has the prompt and the answer of one row, and every row is as likely."""

    kind: str
    path: Path

    @classmethod
    def parse(cls, spec: str, raw: str) -> TraceLengths:
        """Read ``KIND:PATH``, the value of ``lengths=`` in ``spec``; nothing is opened.

        Raises:
            WorkloadError: no kind of trace, or no path.
        """
        kind, _, path = (piece.strip() for piece in raw.partition(":"))
        kinds = traces.trace_words()
        if kind not in kinds or not path:
            raise WorkloadError(
                f"workload {spec!r}: lengths={raw} is no trace{did_you_mean(kind, kinds)}; write "
                f"lengths=KIND:PATH, as in lengths=auto:PATH; kinds are {', '.join(kinds)}"
            )
        return cls(kind=kind, path=Path(path))

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"

    def check(self) -> None:
        """Read the first rows.

        Raises:
            TraceError: the file or one of those rows cannot be read.
        """
        traces.check_trace(self.kind, self.path)

    def draw(self, rng: np.random.Generator, count: int, *, seed: int) -> tuple[IntArray, IntArray]:
        """Prompt and answer tokens of ``count`` rows, drawn with replacement. ``seed`` is for
        tables of rates, whose requests are drawn themselves.

        Raises:
            TraceError: the file or a row cannot be read.
            WorkloadError: it holds no request.
        """
        wanted = Wanted(seed=seed, requests=TABLE_REQUESTS)
        rows = traces.read_trace(self.kind, self.path, wanted)
        if not len(rows):
            raise WorkloadError(f"lengths={self}: it holds no request")
        drawn = rng.integers(0, len(rows), count)
        return rows.input_tokens[drawn], rows.output_tokens[drawn]
