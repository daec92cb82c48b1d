"""This machine's processor: its name, and the cores that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor as the kernel names it, else its architecture."""
    return processor_facts().get("model name", platform.machine())


def processor_facts() -> dict[str, str]:
    """What ``/proc/cpuinfo`` says of the first processor; empty without such a file."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    first, _, _ = text.partition("\n\n")
    fields = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in fields}
