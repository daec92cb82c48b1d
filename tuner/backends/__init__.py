"""Serving systems as host profiles: what they spend beside the device, and their defaults."""

from tuner.backends.backend import (
    Backend,
    HostTimes,
    list_backends,
    load_backend,
    load_profile,
)
from tuner.backends.choice import BackendChoice
from tuner.backends.timer import PartedTimer, ServedSeconds, ServedTimer

__all__ = [
    "Backend",
    "BackendChoice",
    "HostTimes",
    "PartedTimer",
    "ServedSeconds",
    "ServedTimer",
    "list_backends",
    "load_backend",
    "load_profile",
]
