"""The mark on a session that writes what others wait for (``Database.on_commit``)."""

from __future__ import annotations

WATCHED = "gearshift_watched"
