"""What schemathesis does not know by itself: lines of JSON are sent as text."""

from __future__ import annotations

import schemathesis

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
