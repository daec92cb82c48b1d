"""Room for as many clients as may be connected: each is an open file of the server's process, and
while it waits for tokens one of the engine's process too.
"""

from __future__ import annotations

import resource
from dataclasses import replace

from engine.spec.limits import RequestLimits

# What a process has open besides: sockets of ranks, their output, segments, libraries.
OTHER_FILES = 256


def make_room(limits: RequestLimits) -> RequestLimits:
    """Raise this process's limit of open files, which its children inherit, so that
    ``max_connections`` clients fit; with fewer of them where the system lets it have no more.

    Shells and service managers begin with 1,024, which programs that need more raise themselves:
    beyond it no client is accepted, and no rank that failed can start again.
    """
    wanted = limits.max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, wanted):
        return limits
    most = wanted if _is_enough(hard, wanted) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # some systems have a limit of their own below that
        most = soft
    # Where there is little, clients get half of it.
    fitting = max(most - OTHER_FILES, most // 2)
    return replace(limits, max_connections=min(limits.max_connections, fitting))


def _is_enough(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted
