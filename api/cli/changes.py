"""A change of an engine's policy, made or only asked about, as commands tell it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from api.cli.common import log, print_json, print_lines
from policies.numbers import counted, short

if TYPE_CHECKING:
    from api.schemas.serving import ChangeSet
    from engine.spec.settings import Settings


def change_document(answer: ChangeSet, settings: Settings) -> dict[str, Any]:
    """What the control plane says of a change to ``settings``, as ``apply --json`` prints it."""
    return {
        "engine": answer.policy.engine_id,
        "is_dry_run": answer.is_dry_run,
        "settings": str(settings),
        "changes": answer.changes,
        "class": None,
        "version": answer.policy.version,
        "seconds": None,
        "transition": answer.transition,
        "effect": answer.effect,
        "effect_missing": answer.effect_missing,
        "warnings": answer.warnings,
    }


def tell_change(document: dict[str, Any], *, as_json: bool, show: str) -> None:
    """Print the settings, each change with its cost, and how it ended; warnings on stderr. ``show``
    is the command that says when a change that was asked for is in force."""
    for warning in document["warnings"]:
        log(f"warning: {warning}")
    if as_json:
        print_json(document)
    else:
        print_lines(_lines(document, show))


def _lines(document: dict[str, Any], show: str) -> list[str]:
    """The settings, each change with its cost, and how it ended."""
    lines = [f"{document['settings']} on {document['engine']}"]
    lines += [
        f"  {change['knob']}: {_text(change, 'from')} -> {_text(change, 'to')} ({change['class']})"
        for change in document["changes"]
    ]
    if document["transition"]:
        lines.append(f"  {_way_line(document['transition'])}")
    if not document["changes"]:
        return [*lines, "nothing to change: it runs with these settings"]
    if document["is_dry_run"]:
        lines += _effect_lines(document["effect"], document["effect_missing"])
        return [*lines, "dry run: nothing was changed"]
    version = f"policy version {document['version']}"
    if document["seconds"] is None:
        return [*lines, f"asked for: {version}; '{show}' says when it is in force"]
    return [*lines, f"applied in {document['seconds']:.2f} s: {version}"]


def _way_line(transition: dict[str, Any]) -> str:
    """How ranks start and end for the change, and what that takes."""
    start_s, drain_s = transition["start_s"], transition["drain_s"]
    serves = "" if start_s is None else f", new ranks serve after {start_s:.1f} s"
    leaves = f", old ones may take {drain_s:.1f} s to finish" if drain_s else ""
    said = "" if transition["is_measured"] else " (an estimate)"
    most = transition["peak_devices"]
    return (
        f"way: {transition['way']}, at most {counted(most, 'device')} at once{serves}{leaves}{said}"
    )


def _effect_lines(effect: dict[str, Any] | None, missing: str | None) -> Iterator[str]:
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
        yield f"    {metric['metric']} {_number(metric['current'])} -> {_effect(metric)}"


def _effect(metric: dict[str, Any]) -> str:
    change = metric["change"]
    told = _number(metric["candidate"])
    if change is None:
        return told
    noise = "" if change["is_beyond_noise"] else ", within noise"
    share, low, high = (100 * change[name] for name in ("share", "low", "high"))
    return f"{told} ({share:+.1f} %, {low:+.1f} .. {high:+.1f}{noise})"


def _number(value: float | None) -> str:
    return "no end" if value is None else short(value)


def _text(change: dict[str, Any], end: str) -> str:
    """The value before or after: a plan as it is typed, anything else as it is."""
    from engine.spec.plan import ParallelPlan

    value = change[end]
    if change["knob"] == "plan":  # flat at the control plane, degrees apart at an engine
        flat = {**value, **value.get("plan", {})}
        return str(ParallelPlan(**{key: part for key, part in flat.items() if key != "plan"}))
    return "none" if value is None else str(value)
