"""Where a benchmark's report goes."""

from __future__ import annotations

from pathlib import Path


def publish(report: str, out: Path | None) -> None:
    """Write ``report`` to ``out``, where a file is named, and print it."""
    if out is not None:
        out.write_text(report)
    print(report)
