"""What rows keep of servers that are not ours, as JSON, and the values that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from policies.errors import PolicyInputError
from policies.server_window import ServerWindow
from store.models import Sight
from store.models.base import Json
from tuner.servers.snapshot import Snapshot

WINDOW = "server"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is seen since ``since_s`` (Unix time), and what was said of it.

    ``missing``: what its page has no series for (:mod:`tuner.servers.series`). ``restarted_s``:
    when its counters were last seen to begin anew.
    """

    sight: Sight
    since_s: float
    detail: str = ""
    missing: tuple[str, ...] = ()
    restarted_s: float | None = None

    def then(self, sight: Sight, now_s: float, **said: Any) -> Condition:
        """The next one; it is as old as the first in a row of its kind."""
        since_s = self.since_s if sight is self.sight else now_s
        restarted_s = now_s if sight is Sight.RESTARTED else self.restarted_s
        return Condition(sight=sight, since_s=since_s, restarted_s=restarted_s, **said)

    @classmethod
    def from_json(cls, document: Json) -> Condition:
        """Read what :meth:`to_json` wrote."""
        return msgspec.convert(document, cls)

    def to_json(self) -> Json:
        found: Json = msgspec.to_builtins(self)
        return found


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's page said, and when (Unix time)."""

    at_s: float
    snapshot: Snapshot

    @classmethod
    def from_json(cls, document: Json) -> Page:
        """Read what :meth:`to_json` wrote."""
        return msgspec.convert(document, cls)

    def to_json(self) -> Json:
        found: Json = msgspec.to_builtins(self)
        return found


class Restarts(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is restarted here, and how that went.

    ``by``: the service's way. ``away_s``: how long nothing serves meanwhile. ``start_s``: what the
    last one took. After ``failures`` in a row the next may begin at ``retry_at_s``. ``message`` is
    how the last one ended, ``version`` the policy version that it was for; one ``is_under_way``.
    """

    by: str
    away_s: float | None = None
    start_s: float | None = None
    failures: int = 0
    retry_at_s: float | None = None
    version: int | None = None
    message: str = ""
    is_under_way: bool = False

    @classmethod
    def from_json(cls, document: Json) -> Restarts:
        """Read what :meth:`to_json` wrote."""
        return msgspec.convert(document, cls)

    def to_json(self) -> Json:
        found: Json = msgspec.to_builtins(self)
        return found

    def may_begin(self, now_s: float) -> bool:
        """Whether nothing holds back another restart that the controller wants."""
        return self.retry_at_s is None or now_s >= self.retry_at_s


def stats_of(window: ServerWindow, snapshot: Snapshot) -> Json:
    """A heartbeat's ``stats``: what ours say, and the window that buckets are judged from."""
    gauges = snapshot.gauges
    return {
        "running": round(gauges.get("running", 0.0)),
        "waiting": round(gauges.get("waiting", 0.0)),
        "kv_usage": gauges.get("kv_usage"),
        "is_healthy": True,
        "prefix_hit_rate": gauges.get("prefix_hit_rate"),
        WINDOW: msgspec.to_builtins(window),
    }


def window_in(stats: Mapping[str, Any]) -> ServerWindow | None:
    """The window in a heartbeat's ``stats``; None: it is one of ours, or cannot be read."""
    if WINDOW not in stats:
        return None
    try:
        return msgspec.convert(stats[WINDOW], ServerWindow)
    except (msgspec.ValidationError, PolicyInputError):
        return None
