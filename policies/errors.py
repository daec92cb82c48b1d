"""The policies' error tree."""

from __future__ import annotations


class PolicyInputError(Exception):
    """An SLA, schedule or state that cannot be read; the message names the part at fault."""
