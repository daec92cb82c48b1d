"""CUDA events and streams with types: torch annotates neither their constructors nor ``query``.

The calls that mypy would refuse as untyped are here and nowhere else.
"""

from __future__ import annotations

import torch


def new_event(*, is_timed: bool = False) -> torch.cuda.Event:
    """An event to record on a stream; only timed ones can measure the time between two of them."""
    return torch.cuda.Event(enable_timing=is_timed)  # type: ignore[no-untyped-call]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A queue of work on ``device`` beside those it has."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def is_reached(event: torch.cuda.Event) -> bool:
    """Whether the device has come to ``event``; does not wait for it."""
    return bool(event.query())  # type: ignore[no-untyped-call]
