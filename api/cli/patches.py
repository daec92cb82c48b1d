"""Patches of an engine's policy, as they are typed."""

from __future__ import annotations

import json
import re
from typing import Any

from api.cli.common import fail

EXAMPLE = """'{"caps": {"max_num_seqs": 96}}'"""
PATCH_HELP = (
    f"JSON Merge Patch of the policy, as in {EXAMPLE}, or one knob, as in caps.max_num_seqs=96"
)
_ONE_KNOB = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)=(.*)")


def read_patch(text: str, *, or_else: str = "") -> dict[str, Any]:
    """The patch; ends where it is none, nor what it might be ``or_else``."""
    if (one := _ONE_KNOB.fullmatch(text)) is not None:
        return _one_knob(one[1].split("."), one[2])
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError):
        what = f"neither {or_else} nor JSON" if or_else else "no JSON"
        fail(f"{text!r}: {what}; write a patch as in {EXAMPLE}, or caps.max_num_seqs=96")
    if not isinstance(patch, dict):
        fail(f"{text!r}: write a patch as in {EXAMPLE}")
    return patch


def _one_knob(path: list[str], text: str) -> dict[str, Any]:
    """``value`` under its path: a number, null, true, false, or the text as it stands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    for name in reversed(path):
        value = {name: value}
    found: dict[str, Any] = value
    return found
