"""A rollout's limits and progress as JSON, and what a replay is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from api.documents.control_state import timings_of
from api.documents.policy import PolicyDocument
from policies.attainment import meets
from policies.rollout import Canary, RolloutLimits, Slice, Tally
from policies.sla import Sla
from store.models import Heartbeat, RolloutRow
from store.models.base import Json

# Seconds of a slice that heartbeats must tell of.
LEAST_SEEN = 0.8


def limits_to_json(limits: RolloutLimits) -> Json:
    """Inverse of :func:`limits_from_json`."""
    document: Json = msgspec.to_builtins(limits)
    return document


def limits_from_json(document: Json) -> RolloutLimits:
    """Read what :func:`limits_to_json` wrote."""
    return msgspec.convert(document, RolloutLimits)


def canary_to_json(canary: Canary) -> Json:
    """Inverse of :func:`canary_from_json`."""
    document: Json = msgspec.to_builtins(canary)
    return document


def canary_from_json(document: Json) -> Canary:
    """Read what :func:`canary_to_json` wrote."""
    return msgspec.convert(document, Canary)


def tally(
    beats: Iterable[Heartbeat],
    part: Slice,
    limits: RolloutLimits,
    sla: Sla,
    *,
    registered_s: float,
) -> Tally:
    """What arrived in a slice after it settled, from all heartbeats since it began. An engine that
    registered meanwhile began anew, under its command line's settings."""
    assert part.ended_s is not None, "only slices that have ended are counted"
    begin_s = part.ended_s if part.began_s is None else part.began_s
    met = judged = 0
    seen_s = 0.0
    for beat in beats:
        received_s = beat.received_at.timestamp()
        if begin_s <= received_s < part.ended_s:
            seen_s += beat.window_s
        if received_s < begin_s:
            continue
        for timing in timings_of(beat):
            if begin_s + limits.settle_s <= timing.scheduled_s < part.ended_s:
                is_met = meets(sla, timing)
                judged += is_met is not None
                met += bool(is_met)
    is_restarted = begin_s <= registered_s < part.ended_s
    is_whole = not is_restarted and seen_s >= LEAST_SEEN * (part.ended_s - begin_s) > 0
    return Tally(met=met, judged=judged, is_whole=is_whole)


def candidate_of(rollout: RolloutRow) -> PolicyDocument:
    """The policy that is rolled out."""
    return PolicyDocument.from_json(rollout.document)


def stamped(document: PolicyDocument, rollout: RolloutRow, **more: object) -> PolicyDocument:
    """A document that says which rollout it is from."""
    return replace(document, provenance={**document.provenance, "rollout": rollout.id, **more})
