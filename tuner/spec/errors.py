"""The tuner's error tree: what a workload, a trace, a profile or a search request can cause."""

from __future__ import annotations


class TunerError(Exception):
    """Root of the tree; the message names the value at fault and the way out."""


class WorkloadError(TunerError):
    """A workload SPEC that cannot be read, or that leaves no request to send."""


class TraceError(WorkloadError):
    """A trace file or row that cannot be read; the message holds the file and line number."""


class CancelledError(TunerError):
    """Whoever asked for it gave up while it was made."""


class LoadError(TunerError):
    """A target that cannot be driven: unreachable, or not the server it should be."""
