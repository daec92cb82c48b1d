"""What a change would have done in an engine's last hours, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def effect_lines(effect: dict[str, Any] | None, missing: str | None) -> Iterator[str]:
    """The share of requests that would have met the SLA, and the latencies; or why nobody knows."""
    if effect is None:
        if missing is not None:
            yield f"  effect: cannot be told ({missing})"
        return
    yield (
        f"  in the last {effect['minutes']} minutes ({effect['num_draws']} draws, simulated; "
        "90 % intervals):"
    )
    if (found := effect["attainment"]) is not None:
        yield (
            f"    attainment {found['before']:.3f} -> {found['after']:.3f} "
            f"({found['change']:+.3f}, {found['low']:+.3f} .. {found['high']:+.3f})"
        )
    for metric in effect["effects"]:
        yield f"    {metric['metric']} {_number(metric['current'])} -> {_change(metric)}"


def _change(metric: dict[str, Any]) -> str:
    change = metric["change"]
    told = _number(metric["candidate"])
    if change is None:
        return told
    noise = "" if change["is_beyond_noise"] else ", within noise"
    share, low, high = (100 * change[name] for name in ("share", "low", "high"))
    return f"{told} ({share:+.1f} %, {low:+.1f} .. {high:+.1f}{noise})"


def _number(value: float | None) -> str:
    from policies.numbers import short

    return "no end" if value is None else short(value)
