"""What the words of the controller's decisions mean, for people."""

from __future__ import annotations

from policies.capacity_state import CapacityReason
from policies.decision import Action, BandRejection, Reason
from store.decisions import CAPACITY, MODEL

REASONS: dict[str, str] = {
    Reason.NO_DATA: "no heartbeat has come, so nothing is known and nothing changes",
    Reason.STALE_DATA: "the last heartbeat is too old to act on",
    Reason.FIRST_OBSERVATION: "first look at this load: took the settings of its band",
    Reason.IN_BAND: "the load is inside the band whose settings run",
    Reason.DEAD_BAND: "the load has passed the edge of its band, but by too little to move",
    Reason.COOL_DOWN: "the load has fallen, but too soon after the last change",
    Reason.LOAD_UP: "the load has risen into a higher band",
    Reason.LOAD_DOWN: "the load has fallen into a lower band",
    Reason.MIX_CHANGED: "requests have other lengths than before",
    Reason.SLA_MISSED: "windows in a row missed the SLA: took the settings of a higher load",
    Reason.SLA_MISSED_AT_TOP: "the SLA is missed, and there is no band with a higher load",
    Reason.SLA_INFEASIBLE: "one request alone misses the SLA: relax it, or tune another plan",
    Reason.BEYOND_SCHEDULE: "the load is above every band: add a replica, or tune for this load",
    Reason.DRIFT_PAUSED: "somebody changed the settings by hand: the controller waits",
    Reason.DRIFT_ADOPTED: "settings that were changed by hand were adopted",
    Reason.DRIFT_REVERTED: "settings that were changed by hand were put back",
    "restart_failed": "the server was not restarted: see its restarts; it is tried again later",
    CAPACITY + CapacityReason.NO_DATA: "nothing is known of the load, so nothing changes",
    CAPACITY + CapacityReason.STALE_DATA: "what is known of the load is too old to act on",
    CAPACITY + CapacityReason.HOLDS: "what runs carries the load that is expected",
    CAPACITY + CapacityReason.LOAD_UP: "more is expected than what runs carries",
    CAPACITY + CapacityReason.LOAD_DOWN: "fewer devices have been enough for long enough",
    CAPACITY + CapacityReason.SLA_MISSED: "the SLA was missed by a load that should be carried",
    CAPACITY + CapacityReason.BEYOND_TABLE: "no entry of the capacity table carries the load",
    CAPACITY + CapacityReason.DWELL: "fewer devices would do, but not yet for long enough",
    CAPACITY + CapacityReason.GUARD_INTERVAL: "too soon after the last change: min_interval_s",
    CAPACITY + CapacityReason.GUARD_PER_HOUR: "too many changes in an hour: max_reshapes_per_h",
    CAPACITY + CapacityReason.NOT_WORTH_IT: "the change would cost more than it brings",
    CAPACITY + CapacityReason.DRIFT_PAUSED: "somebody changed the settings by hand: it waits",
    f"{MODEL}drifted": "steps take another time than the recommendation foresees",
    f"{MODEL}as_foreseen": "steps take the time that the recommendation foresees again",
    f"{MODEL}retune_queued": "a tuning job was queued because of the drift",
    f"{MODEL}retune_offered": "the tuning job has ended: its recommendation waits to be applied",
    f"{MODEL}retune_applied": "the tuning job's recommendation was put in force",
}
REJECTIONS: dict[str, str] = {
    BandRejection.LOAD_IS_HIGHER: "load is higher",
    BandRejection.LOAD_IS_LOWER: "load is lower",
    BandRejection.OTHER_MIX: "other lengths",
    BandRejection.DEAD_BAND: "dead band",
    BandRejection.COOL_DOWN: "cool-down",
    BandRejection.NO_FRESH_DATA: "no fresh data",
    BandRejection.DRIFT: "changed by hand",
    BandRejection.SLA_MISSED: "missed the SLA",
}
ACTIONS: dict[str, str] = {
    Action.HOLD: "held",
    Action.MOVE: "moved",
    Action.ADVISE: "advised",
    Action.RAISE_CONDITION: "raised a condition",
}


def meaning(reason: str) -> str:
    """What a decision's reason says; a reason of another version stays as it is."""
    return REASONS.get(reason, reason)
