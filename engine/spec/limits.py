"""What one client may take of a server: bounds that hold before anything of it is trusted."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one client can take of a server.

    A body of more than ``max_body_bytes`` is refused (413), and so is one that has not come within
    ``body_timeout_s`` (408); an answer of which the client reads nothing for as long is cut. A
    connection is closed if a whole request head has not come within
    ``header_timeout_s`` of its opening or of the head's first byte, or if nothing comes within
    ``keep_alive_s`` of an answer. Beyond ``max_connections`` the one that has waited longest
    without a request is cut, else the new one is answered 503. ``rate_per_s`` are requests per key,
    of which ten seconds' worth may come at once (429 beyond them; 0: any number).
    """

    max_body_bytes: int = 16 * MIB
    header_timeout_s: float = 10.0
    # Longer than the pauses of clients and proxies, which would otherwise send a request just as
    # the connection is closed, and lose it.
    keep_alive_s: float = 75.0
    body_timeout_s: float = 60.0
    max_connections: int = 8192
    rate_per_s: float = 1000.0
